"""STR-1, STR-10, STR-20, STR-23, STR-63, CLK-1, CLK-2: a real server, a real ``m32net listen``."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from twisted.trial import unittest

from tests.support import pulse
from tests.support.processes import ListenProcess, ServerProcess, wait_for

RATE = 48_000
CHANNELS = 32
Samples = npt.NDArray[np.int32]


def pattern(seconds: float, seed: int = 1) -> Samples:
    """24-bit noise, another on each channel, left-justified: no two places are alike."""
    random = np.random.default_rng(seed)
    noise = random.integers(-(2**23), 2**23, (int(seconds * RATE), CHANNELS), dtype=np.int32)
    return noise << 8


def position(recorded: Samples, original: Samples, probe: int) -> int:
    """Where in ``original`` the sample row ``recorded[probe]`` stands, by all channels."""
    (places,) = np.nonzero((original == recorded[probe]).all(axis=1))
    if len(places) != 1:
        raise AssertionError(f"the recorded row {probe} stands {len(places)} times in the original")
    return int(places[0])


class RecordingCase(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="m32net-test-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.wav = self.directory / "out.wav"

    def serve(self, *options: str, **how: Any) -> ServerProcess:
        server = ServerProcess(*options, **how)
        self.addCleanup(server.close)
        return server

    def listen(self, server: ServerProcess, *options: str) -> ListenProcess:
        child = ListenProcess(
            server.url, "--udp-port=0", f"--record={self.wav}", "--interface=127.0.0.1", *options
        )
        self.addCleanup(child.close)
        return child

    def recorded(self) -> Samples:
        samples, rate = soundfile.read(self.wav, dtype="int32", always_2d=True)
        self.assertEqual(rate, RATE)
        return np.asarray(samples)

    def summary(self, child: ListenProcess) -> dict[str, Any]:
        (one,) = [report for report in child.reports() if report["type"] == "summary"]
        return one


class FileTest(RecordingCase):
    def test_file_to_recording_is_bit_exact(self) -> None:
        """STR-1: 32 channels of a WAV come out of ``listen --record`` bit-exact on L24, mapped."""
        original = pattern(6)
        source = self.directory / "band.wav"
        soundfile.write(source, original, RATE, subtype="PCM_24")
        server = self.serve(f"--source=file:{source}", "--log-level=error")
        server.get("/health")
        child = self.listen(server, "--codec=L24", "--duration=4")
        self.assertEqual(child.wait(), 0, child.text())
        recorded = self.recorded()
        self.assertEqual(recorded.shape[1], CHANNELS)
        self.assertGreater(len(recorded), 3 * RATE)
        first = position(recorded, original, 0)
        rows = (first + np.arange(len(recorded))) % len(original)
        np.testing.assert_array_equal(recorded, original[rows])
        summary = self.summary(child)
        self.assertEqual((summary["lost"], summary["concealed_ms"]), (0, 0))

    def test_mapping(self) -> None:
        """STR-20, STR-30: only the channels asked for, as tracks in the order asked."""
        server = self.serve("--source=test", "--log-level=error")
        server.get("/health")
        child = self.listen(
            server, "--codec=L24", "--channels=9,3,32", "--layout=mono", "--duration=2"
        )
        self.assertEqual(child.wait(), 0, child.text())
        recorded = self.recorded()
        self.assertEqual(np.unique(recorded >> 16, axis=0).tolist(), [[9, 3, 32]])

    def test_figures(self) -> None:
        """STR-63, CLK-1, CLK-2: packets, loss, jitter, latency; posted and seen by the server."""
        server = self.serve("--source=test", "--log-level=error")
        token = server.login()
        child = self.listen(server, "--duration=9")
        seen: list[dict[str, Any]] = []

        def reported() -> bool:
            listeners = server.call("GET", "/api/listeners", token=token)[1]["listeners"]
            seen.extend(one for one in listeners if one["quality"])
            return any(one["quality"].get("latency_ms") is not None for one in seen)

        wait_for(reported, "the server has the listener's figures", 15)
        self.assertEqual(child.wait(), 0, child.text())
        last = [one for one in child.reports() if one["type"] == "progress"][-1]
        self.assertEqual(last["lost"], 0)
        self.assertLess(abs(last["latency_ms"]), 50)
        self.assertLess(last["jitter_ms"], 20)
        self.assertEqual(seen[-1]["rating"], "good")


class LifeTest(RecordingCase):
    def test_new_format_and_server_restart(self) -> None:
        """STR-10, STR-23: the listener is back by itself after a new format and a new server."""
        state = str(self.directory / "state")
        server = self.serve("--source=test", "--log-level=error", state_dir=state)
        token = server.login()
        child = self.listen(server, "--duration=40")

        def codec() -> str | None:
            shown = [one for one in child.reports() if one["type"] == "progress"]
            return shown[-1]["codec"] if shown and shown[-1]["packets"] else None

        wait_for(lambda: codec() == "opus", "Opus flows")
        status, answer = server.call("PUT", "/api/audio-config", {"codec": "L16"}, token)
        self.assertEqual(status, 200, answer)
        wait_for(lambda: codec() == "L16", "L16 flows")
        port = server.port
        server.stop(signal.SIGKILL)
        before = len(child.reports())
        again = self.serve(
            "--source=test", "--log-level=error", f"--http=tcp:{port}", state_dir=state
        )
        again.get("/health")
        wait_for(
            lambda: any(one.get("packets") for one in child.reports()[before + 3 :]),
            "audio from the new server",
        )
        self.assertEqual(child.stop(signal.SIGINT), 0, child.text())
        summary = self.summary(child)
        self.assertGreaterEqual(summary["reconnects"], 1)
        first, *more = [soundfile.info(path).frames for path in summary["recorded"]]
        self.assertGreater(first, RATE // 2)  # Opus, from the start to the new format
        self.assertGreater(sum(more), 3 * RATE)  # L16, over the server's restart

    def test_leaving(self) -> None:
        """STR-5: a listener that is stopped says bye, and leaves no ghost on the server."""
        server = self.serve("--source=test")
        token = server.login()

        def listeners() -> list[dict[str, Any]]:
            found: list[dict[str, Any]]
            found = server.call("GET", "/api/listeners", token=token)[1]["listeners"]
            return found

        child = self.listen(server)
        wait_for(lambda: any(one.get("packets") for one in child.reports()), "audio")
        self.assertEqual(len(listeners()), 1)
        self.assertEqual(child.stop(signal.SIGINT), 0, child.text())
        wait_for(lambda: not listeners(), "the listener is gone", 1.0)
        self.assertIn("the listener said bye", server.text())
        self.assertGreater(len(self.recorded()), 0)
        child = self.listen(server, "--duration=1")
        self.assertEqual(child.wait(), 0, child.text())
        wait_for(lambda: not listeners(), "the next one is gone", 1.0)
        self.assertEqual(server.text().count("has left: the listener said bye"), 2)

    def test_usual_port_is_taken(self) -> None:
        """A server and a listener on one machine both want UDP port 5004."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            with contextlib.suppress(OSError):  # taken already is as good
                taken.bind(("127.0.0.1", 5004))
            server = self.serve("--source=test", "--log-level=error")
            options = ("--interface=127.0.0.1", "--duration=1")
            child = ListenProcess(server.url, *options, environment={"UDP_PORT": ""})
            self.addCleanup(child.close)
            self.assertEqual(child.wait(), 0, child.text())
            lines = child.text().splitlines()
            self.assertEqual(len([one for one in lines if "5004 is in use" in one]), 1)
            strict = ListenProcess(server.url, *options, environment={"UDP_PORT": "5004"})
            self.addCleanup(strict.close)
            self.assertEqual(strict.wait(), 2, strict.text())


class ConsoleTest(RecordingCase):
    """The console's place is taken by a PulseAudio null sink with 32 channels."""

    skip = pulse.missing() or None

    def test_console_to_recording_is_bit_exact(self) -> None:
        """STR-1, STR-20: played into the sink, captured, streamed as L24, recorded: every bit."""
        sound = pulse.PulseDaemon(self.directory / "pulse")
        self.addCleanup(sound.stop)
        sound.start()
        original = pattern(14)
        music = self.directory / "console.raw"
        original.tofile(music)
        server = self.serve(
            "--source=device:pulse", "--log-level=error", environment=sound.environment
        )
        server.get("/health")
        child = self.listen(server, "--codec=L24", "--duration=9")
        wait_for(lambda: len(child.reports()) > 1, "the listener streams")
        sound.play(music)
        self.assertEqual(child.wait(), 0, child.text())
        recorded = self.recorded()
        (sounding,) = np.nonzero(recorded.any(axis=1))
        start = int(sounding[0])
        heard = recorded[start:]
        self.assertGreater(len(heard), 4 * RATE)
        first = position(heard, original, 0)
        np.testing.assert_array_equal(heard, original[first : first + len(heard)])
        self.assertEqual(self.summary(child)["lost"], 0)
