"""How soon a listener is served again after its network was cut for 5 s (CON-52).

Two builds in the same run, in turn: this one, and the plain one, which is the last version without
what keeps connections (a work tree of its commit).  A real server and a real ``m32net listen`` on
two ends of a switch; the cable of the listener is pulled and put back at times that differ.  While
it is out the engineer sends messages; recovery is the time from putting it back until all that
was sent meanwhile has been heard.  Audio is judged by the recording: silence beyond the cut.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import soundfile

from benchmarks.report import PartResult, Progress, Table, Verdict
from benchmarks.switched import NoSwitch, Switch, switch
from tests.support.ports import free_pair

ROOT: Final = Path(__file__).resolve().parents[1]
PLAIN_COMMIT: Final = "7594b73"
CUT_S: Final = 5.0
SETTLE_S: Final = 4.0
LONGEST_S: Final = 40.0
EVERY_S: Final = 0.4
"""Between the engineer's messages during a cut."""


class Lines(threading.Thread):
    """Everything a child says, with the time at which it said it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self.said: list[tuple[float, str]] = []
        self.start()

    def run(self) -> None:
        for line in self._stream:
            self.said.append((time.monotonic(), line.rstrip()))

    def wait_for(self, pattern: str, seconds: float) -> tuple[float, re.Match[str]] | None:
        """When something that matches was first said; None if it never was."""
        end = time.monotonic() + seconds
        while True:
            for at, line in list(self.said):
                found = re.search(pattern, line)
                if found:
                    return at, found
            if time.monotonic() > end:
                return None
            time.sleep(0.005)


class Build:
    """A server and a listener of one version of the program."""

    def __init__(self, name: str, tree: Path, net: Switch, directory: Path) -> None:
        self.name = name
        self.net = net
        self.http = 18_000 + random.SystemRandom().randrange(1000)
        self.recording = directory / f"{name}.wav"
        state = directory / f"state-{name}"
        state.mkdir()
        options = []
        if name == "this":  # the engineer opens a connection for each message
            options = ["--https=no", f"--exempt={net.address(3)}"]
        self.server = self._start(
            net.prefix(1), tree, "-c",
            "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()",
            "-n", "--pidfile=", "m32net", f"--state-dir={state}", "--source=test",
            f"--interface={net.address(1)}", f"--http=tcp:{self.http}", "--no-mdns",
            f"--rtp-port={free_pair()}", "--log-level=error", *options,
        )  # fmt: skip
        self.heard = Lines(self.server.stdout)
        self.listener: subprocess.Popen[str] | None = None
        self.tree = tree
        said = self.heard.wait_for(r"password .*: (\S+)$", 30)
        if said is None or self.heard.wait_for("Engineer:", 30) is None:
            raise RuntimeError(f"the {name} server did not start: {self.heard.said[-3:]}")
        self.token = self.post("/api/login", {"user": "admin", "password": said[1][1]})["token"]
        self.listener = self._start(
            net.prefix(2), tree, "-m", "m32net.cli", "listen",
            f"http://{net.address(1)}:{self.http}", "--udp-port=0", "--channels=1",
            f"--record={self.recording}", "--codec=opus",
        )  # fmt: skip
        self.told = Lines(self.listener.stdout)
        if self.told.wait_for("receiving", 30) is None:
            raise RuntimeError(f"the {name} listener did not start: {self.told.said[-3:]}")

    def _start(self, prefix: Sequence[str], tree: Path, *words: str) -> Any:
        return subprocess.Popen(
            [*prefix, sys.executable, *words],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if hasattr(self, "token"):
            headers["Authorization"] = f"Bearer {self.token}"
        url = f"http://{self.net.address(1)}:{self.http}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with self.net.on_the_switch(), urllib.request.urlopen(request, timeout=10) as answer:
            result: dict[str, Any] = json.loads(answer.read())
            return result

    def cut(self, number: int, wait_s: float) -> float:
        """One cut; seconds until everything that was said meanwhile was heard."""
        self.net.pull(2)
        pulled = time.monotonic()
        time.sleep(wait_s)
        words = []
        while time.monotonic() < pulled + CUT_S - EVERY_S:
            words.append(f"cut {number} message {len(words)}.")
            self.post("/api/message", {"type": "custom_message", "reason": words[-1]})
            time.sleep(EVERY_S)
        time.sleep(max(0.0, pulled + CUT_S - time.monotonic()))
        self.net.plug(2)
        plugged = time.monotonic()
        heard = [self.told.wait_for(re.escape(word), LONGEST_S) for word in words]
        return max(LONGEST_S if one is None else one[0] - plugged for one in heard)

    def silences(self) -> list[float]:
        """Seconds of each silent stretch in the recording longer than 1 s."""
        samples, rate = soundfile.read(self.recording, dtype="float32", always_2d=True)
        loud = np.flatnonzero(np.abs(samples[:, 0]) > 1e-4)
        gaps = np.diff(loud) / rate
        return [float(gap) for gap in gaps if gap > 1]

    def stop(self) -> None:
        for child in (self.listener, self.server):
            if child is not None and child.poll() is None:
                child.terminate()
                try:
                    child.wait(20)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


@contextmanager
def plain_tree() -> Iterator[Path]:
    """A work tree of the plain build."""
    place = Path(tempfile.mkdtemp(prefix="m32net-plain-"))
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run(
        [*git, "add", "--detach", "--force", str(place), PLAIN_COMMIT],
        check=True,
        capture_output=True,
    )
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def run(quick: bool, progress: Progress) -> PartResult:
    result = PartResult("recovery")
    try:
        with switch() as net, plain_tree() as plain:
            return _measure(net, plain, 2 if quick else 8, progress, result)
    except NoSwitch as reason:
        result.notes.append(f"not measured: {reason}")
    except (OSError, subprocess.CalledProcessError) as reason:
        result.notes.append(f"not measured: no work tree of {PLAIN_COMMIT} can be made ({reason})")
    return result


def _measure(
    net: Switch, plain: Path, cuts: int, progress: Progress, result: PartResult
) -> PartResult:
    rng = random.Random(52)
    times: dict[str, list[float]] = {}
    silent: dict[str, list[float]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m32net-cut-")))
        builds = []
        for name, tree in (("plain", plain), ("this", ROOT)):
            build = Build(name, tree, net, directory)
            stack.callback(build.stop)
            builds.append(build)
        time.sleep(SETTLE_S)
        for number in range(cuts):
            wait_s = rng.uniform(0.05, 1.5)
            for build in builds if number % 2 else builds[::-1]:
                progress(f"cut {number + 1} of {cuts}, {build.name} build")
                times.setdefault(build.name, []).append(build.cut(number, wait_s))
                time.sleep(SETTLE_S + rng.uniform(0, 1))
        for build in builds:
            build.stop()
            silent[build.name] = build.silences()
    return _shown(result, times, silent)


def _shown(
    result: PartResult, times: dict[str, list[float]], silent: dict[str, list[float]]
) -> PartResult:
    columns = ("build", "cuts", "median s", "longest s", "audio back after s (median)")
    table = Table(f"Recovery after a cut of {CUT_S:g} s", columns)
    for name, seconds in times.items():
        beyond = [gap - CUT_S for gap in silent[name]]
        back = statistics.median(beyond) if beyond else None
        table.rows.append((name, len(seconds), statistics.median(seconds), max(seconds), back))
    ratio = statistics.median(times["this"]) / statistics.median(times["plain"])
    result.tables.append(table)
    result.verdicts.append(
        Verdict("recovery against the plain build", "at most 0.5x", f"{ratio:.2f}x", ratio <= 0.5)
    )
    result.data = {"seconds": times, "silences": silent}
    result.notes.append(
        f"The plain build is commit {PLAIN_COMMIT}: TCP as the kernel has it, no pings."
    )
    return result
