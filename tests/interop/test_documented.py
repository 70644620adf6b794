"""STR-5, STR-10, STR-30: docs/receivers.md: its example joins, its commands record as it says."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import soundfile

from protocols.rtp import sdp
from tests.support.ports import free_pairs
from tests.support.processes import ROOT, Child, ServerProcess, missing
from tests.support.scripted import ListenerCase

PAGE = ROOT / "docs" / "receivers.md"
JOIN = ROOT / "docs" / "examples" / "join.py"
SECONDS = "1.5"


def commands(start: str) -> list[list[str]]:
    """The page's command lines that start so, as words; recordings cut short."""
    lines = re.findall(rf"^{re.escape(start)} .*$", PAGE.read_text(encoding="utf-8"), re.M)
    return [shlex.split(line.replace("-t 10", f"-t {SECONDS}")) for line in lines]


class Documented(ListenerCase):
    skip = missing("ffmpeg", "gst-launch-1.0")

    def start_join(self, server: ServerProcess, words: Collection[str]) -> Child:
        """join.py, on free ports."""
        return self.start(sys.executable, str(JOIN), server.url, str(free_pairs(2)), *words)

    async def described(self, join: Child, streams: int) -> None:
        """Wait for its SDP."""
        await self.until(lambda: join.text().count("a=recvonly") == streams, "SDP is printed")

    async def joined(self, server: ServerProcess, count: int) -> list[tuple[Child, Path]]:
        """The page's join.py command so often, each with the directory where m32.sdp is."""
        (words,) = commands("python docs/examples/join.py")
        self.assertEqual(words[-2:], [">", "m32.sdp"])
        children = [self.start_join(server, words[4:-2]) for _ in range(count)]
        found = []
        for child in children:
            await self.described(child, 2)
            found.append((child, self.directory()))
            (found[-1][1] / "m32.sdp").write_text(child.text())
        return found

    def run_in(self, directory: Path, command: Collection[str]) -> Child:
        return self.start("env", "-C", str(directory), *command)

    def check_wav(self, path: Path, *channels: int) -> None:
        """STR-3: every sample is its channel's number, in 24 bits."""
        got, rate = soundfile.read(path, dtype="int32", always_2d=True)
        self.assertEqual(rate, 48_000)
        self.assertGreater(len(got), rate / 2)
        self.assertEqual(np.unique(got, axis=0).tolist(), [[c << 16 for c in channels]], path)

    async def test_recordings(self) -> None:
        """Heartbeats keep the listeners for longer than the server would have without them."""
        server = self.serve("--heartbeat-timeout=1")
        each, both = (words for words in commands("ffmpeg") if words[-1].endswith(".wav"))
        (launched,) = (words for words in commands("gst-launch-1.0") if "-e" in words)
        joined = await self.joined(server, 3)
        directories = [directory for _, directory in joined]
        *ffmpegs, gstreamer = map(self.run_in, directories, (each, both, launched))
        await self.ended(ffmpegs)
        second = directories[2] / "second.wav"

        def recorded() -> bool:
            self.assertTrue(gstreamer.running(), gstreamer.text())
            return second.exists() and second.stat().st_size > 200_000

        await self.until(recorded, "GStreamer has recorded")
        gstreamer.process.send_signal(signal.SIGINT)
        await self.ended([gstreamer])
        self.check_wav(directories[0] / "one.wav", 1)
        self.check_wav(directories[0] / "two.wav", 2)
        self.check_wav(directories[1] / "both.wav", 1, 2)
        self.check_wav(directories[2] / "first.wav", 1)
        self.check_wav(directories[2] / "second.wav", 2)
        for join, _ in joined:
            self.assertEqual(join.stop(signal.SIGINT), 0, join.text())
        await self.until(lambda: server.get("/audio-meta")["listeners"] == 0, "all have left")
        self.assertEqual(server.text().count("streams end: the listener said bye"), 3)

    async def test_another_format(self) -> None:
        """STR-10: join.py asks again when the format has been changed, and ends if refused."""
        server = self.serve()
        join = self.start_join(server, ['channels=[{"id":7}]'])
        await self.until(lambda: "opus/48000/2" in join.text(), "Opus is described")
        status, answer = server.call("PUT", "/api/audio-config", {"codec": "L16"}, server.login())
        self.assertEqual(status, 200, answer)
        await self.until(lambda: "L16/48000/1" in join.text(), "L16 is described")
        again = join.text().rindex("v=0")
        self.assertEqual(len(sdp.parse(join.text()[again:]).media), 1)
        refused = self.start_join(server, ["frame_ms=3"])
        self.assertEqual(refused.wait(10), 1)
        self.assertIn("bad_message", refused.text())
