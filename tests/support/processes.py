"""Child processes of the tests: a real server, a real listener, any other program.

Each is started with its own state directory and ports, on loopback only, and ended by its own
process id.  Waiting is for a condition with a bound, never for a time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.support.ports import free_pair

ROOT = Path(__file__).resolve().parent.parent.parent
HOST = "127.0.0.1"
SOAK = bool(os.environ.get("M32NET_SOAK"))
"""``make soak``: the same tests, longer where time finds more."""
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Poll until ``condition()`` is true and give its value."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)


def missing(*programs: str) -> str | None:
    """A reason to skip a test, if one of these programs is not installed."""
    absent = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Child:
    """A process with its output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.output = tempfile.NamedTemporaryFile(prefix="m32net-", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*prefix, *command],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return Path(self.output.name).read_text(encoding="utf-8", errors="replace")

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout_s: float = 60.0) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not end in {timeout_s:g} s:\n{self.text()}") from None

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        if self.running():
            self.process.send_signal(how)
        return self.wait(timeout_s)

    def close(self) -> None:
        """Whatever happens, gone."""
        if self.running():
            self.process.kill()
            self.process.wait()
        self.output.close()

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ServerProcess(Child):
    """``twistd -n m32net`` on loopback.

    :ivar rtp_port: the UDP port audio comes from.
    """

    def __init__(
        self,
        *options: str,
        state_dir: str | None = None,
        environment: Mapping[str, str] | None = None,
        host: str = HOST,
        prefix: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.rtp_port = free_pair()
        self._own_state = tempfile.mkdtemp(prefix="m32net-state-") if state_dir is None else None
        self.state_dir = state_dir or self._own_state or ""
        self._port: int | None = None
        command = [
            sys.executable,
            "-c",
            "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()",
            "-n",
            "--pidfile=",
            "m32net",
            f"--state-dir={self.state_dir}",
            f"--interface={host}",
            f"--rtp-port={self.rtp_port}",
            "--http=tcp:0",
            "--https=no",
            "--no-mdns",
            *options,
        ]
        super().__init__(command, environment=environment, prefix=prefix)

    @property
    def port(self) -> int:
        """The TCP port; waits until the server says it."""
        if self._port is None:
            self._port = wait_for(self._said_port, "the server listens")
        return self._port

    def _said_port(self) -> int | None:
        if not self.running():
            raise AssertionError(f"the server ended:\n{self.text()}")
        for line in self.text().splitlines():
            words = line.split()
            if words[:1] == ["Engineer:"]:
                return int(words[1].split(":")[2].split("/")[0])
        return None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def password(self) -> str:
        """The engineer's first password; it is printed before the port is open."""
        assert self.port
        for line in self.text().splitlines():
            if "password (user admin)" in line:
                return line.split()[-1]
        raise AssertionError(f"no password in:\n{self.text()}")

    def get(self, path: str) -> Any:
        """The JSON (or text) at a path."""
        return self.call("GET", path)[1]

    def call(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> tuple[int, Any]:
        """Status and body of a REST call."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status, raw, kind = answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            status, raw, kind = error.code, error.read(), error.headers["Content-Type"]
        text = raw.decode()
        return status, json.loads(text) if "json" in (kind or "") else text

    def login(self) -> str:
        """An admin session's token."""
        status, answer = self.call(
            "POST", "/api/login", {"user": "admin", "password": self.password}
        )
        assert status == 200, answer
        token: str = answer["token"]
        return token

    def close(self) -> None:
        super().close()
        if self._own_state:
            shutil.rmtree(self._own_state, ignore_errors=True)


class ListenProcess(Child):
    """``m32net listen``, with ``--json``: one object a second and a summary at the end."""

    def __init__(
        self,
        url: str,
        *options: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        command = [sys.executable, "-m", "m32net.cli", "listen", url, "--json", *options]
        super().__init__(command, environment=environment, prefix=prefix)

    def reports(self) -> list[dict[str, Any]]:
        """Every JSON object printed so far."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
