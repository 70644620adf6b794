"""STR-1, STR-5, STR-7, STR-31, STR-43: starting, failing to start, and stopping a real server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial import unittest

from m32net.config import SETTINGS
from m32net.store.database import open_database
from tests.support.ports import free_pair
from tests.support.processes import ROOT, Child, ServerProcess, wait_for

TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


class CannotStartTest(unittest.TestCase):
    """What is wrong at the start is one clear line and an exit status, never a traceback."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="m32net-test-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def outcome(self, *options: str, environment: dict[str, str] | None = None) -> str:
        """The only line the server prints besides its log, once it has failed."""
        command = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "m32net"]
        given = [f"--state-dir={self.directory / 'state'}", "--interface=127.0.0.1", "--no-mdns"]
        child = Child(command + given + list(options), environment=environment)
        self.addCleanup(child.close)
        self.assertNotEqual(child.wait(30), 0, child.text())
        self.assertNotIn("Traceback", child.text())
        lines = [line for line in child.text().splitlines() if line.startswith("m32net: ")]
        self.assertEqual(len(lines), 1, child.text())
        return lines[0]

    def test_wrong_options(self) -> None:
        self.assertIn("option --frob not recognized", self.outcome("--frob"))
        self.assertIn("--channels: 65 is outside 1..64", self.outcome("--channels=65"))
        self.assertIn("unexpected argument 'demo'", self.outcome("demo"))
        self.assertIn("cannot read", self.outcome("--config=/nowhere.toml"))
        self.assertIn("M32NET_RTP_PORT: 'x'", self.outcome(environment={"M32NET_RTP_PORT": "x"}))
        self.assertIn("do not fit together: frame_ms", self.outcome("--codec=L24", "--frame-ms=20"))

    def test_ports_in_use(self) -> None:
        port = free_pair()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", port + 1))
            line = self.outcome(f"--rtp-port={port}", "--http=tcp:0")
            self.assertIn(f"cannot use UDP ports {port} and {port + 1}", line)
            self.assertIn("--rtp-port", line)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            number = taken.getsockname()[1]
            line = self.outcome(f"--rtp-port={port}", f"--http=tcp:{number}")
            self.assertIn(f"127.0.0.1:{number}", line)
            self.assertIn("Address already in use", line)
        self.assertIn("endpoint", self.outcome(f"--rtp-port={port}", "--http=frob:1"))

    def test_sources(self) -> None:
        """STR-1: an unknown device or a bad file is named, with what to do."""
        self.assertIn("none of demo, test", self.outcome("--source=tape"))
        self.assertIn("/nowhere.wav", self.outcome("--source=file:/nowhere.wav"))
        bad = self.directory / "bad.wav"
        bad.write_bytes(b"RIFFgarbage")
        self.assertIn("bad.wav", self.outcome(f"--source=file:{bad}"))
        self.assertIn("no such gadget", self.outcome("--source=device:no such gadget"))

    def test_missing_libraries(self) -> None:
        """Without libopus or PortAudio: what is missing and how to get it; the rest still runs."""
        site = self.directory / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            "import ctypes.util\n"
            "found = ctypes.util.find_library\n"
            "ctypes.util.find_library = lambda name: (\n"
            "    None if name in ('opus', 'portaudio') else found(name))\n"
        )
        without = {"PYTHONPATH": f"{site}:{ROOT}"}
        self.assertIn("libopus0", self.outcome("--source=demo", environment=without))
        line = self.outcome("--source=device", "--codec=L16", environment=without)
        self.assertIn("libportaudio2", line)
        server = ServerProcess("--source=test", "--codec=L24", environment=without)
        self.addCleanup(server.close)
        self.assertEqual(server.get("/health")["status"], "healthy")

    def test_state(self) -> None:
        """STR-7: a state directory or database that cannot be used."""
        blocked = self.directory / "file"
        blocked.write_text("x")
        self.assertIn(str(blocked), self.outcome(f"--state-dir={blocked}/sub"))
        state = self.directory / "state"
        state.mkdir()
        database = state / "m32net.sqlite"
        database.write_bytes(b"this is no database, but long enough to be looked at" * 100)
        self.assertIn("m32net.sqlite", self.outcome())
        database.unlink()
        for side in ("-wal", "-shm"):
            Path(f"{database}{side}").unlink(missing_ok=True)
        open_database(database)
        with sqlite3.connect(database) as connection:
            connection.execute("INSERT INTO schema_version VALUES (9999, 'later', 0)")
        self.assertIn("newer", self.outcome())

    def test_state_in_use(self) -> None:
        """STR-7: one writer; a second server on the same state is told so, the first goes on."""
        first = ServerProcess("--source=test", state_dir=str(self.directory / "state"))
        self.addCleanup(first.close)
        first.get("/health")
        self.assertIn("another m32net server uses", self.outcome(f"--rtp-port={free_pair()}"))
        self.assertEqual(first.get("/health")["status"], "healthy")

    def test_foreign_address(self) -> None:
        self.assertIn("192.0.2.1", self.outcome("--interface=192.0.2.1"))


class HelpTest(unittest.TestCase):
    def test_every_option_is_explained(self) -> None:
        """STR-43: --help names every setting; it is for people."""
        command = [sys.executable, "-c", TWISTD, "m32net", "--help"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        for setting in SETTINGS:
            self.assertIn(f"--{setting.option}", shown.stdout)
        self.assertIn("--no-mdns", shown.stdout)

    def test_command_errors(self) -> None:
        for words, expected in (
            (["frob"], "Unknown command: frob"),
            ([], "which command?"),
            (["devices", "--frob"], "--frob"),
            (["passwd", "--state-dir=/nowhere"], "no server state in /nowhere"),
        ):
            ran = subprocess.run(
                [sys.executable, "-m", "m32net.cli", *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertNotEqual(ran.returncode, 0)
            self.assertIn(expected, ran.stderr)
            self.assertNotIn("Traceback", ran.stderr)


class RunningTest(unittest.TestCase):
    def server(self, *options: str, **how: str) -> ServerProcess:
        server = ServerProcess(*options, **how)  # type: ignore[arg-type]
        self.addCleanup(server.close)
        return server

    def test_greeting(self) -> None:
        """The addresses, a QR code, and a password that is shown once."""
        state = tempfile.mkdtemp(prefix="m32net-test-")
        self.addCleanup(shutil.rmtree, state)
        first = self.server(state_dir=state)
        self.assertEqual(first.get("/health")["status"], "healthy")
        self.assertIn("█", first.text())
        token = first.login()
        status, answer = first.call("PUT", "/api/channels", [{"id": 1, "name": "Vocal 🎤"}], token)
        self.assertEqual(status, 200, answer)
        first.stop(signal.SIGKILL)
        again = self.server(state_dir=state)
        self.assertEqual(again.get("/audio-meta")["channels"][0]["name"], "Vocal 🎤")
        self.assertNotIn("password (user admin)", again.text())

    def test_sigterm(self) -> None:
        """Clean stop: exit status 0, ports free, nothing unexpected in the log."""
        server = self.server()
        port = server.port
        self.assertEqual(server.stop(), 0, server.text())
        self.assertNotIn("Traceback", server.text())
        with socket.socket() as probe:
            self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0)

    def test_tac(self) -> None:
        """The same server from tac/m32net.tac, set up by the environment."""
        state = tempfile.mkdtemp(prefix="m32net-test-")
        self.addCleanup(shutil.rmtree, state)
        child = Child(
            [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "-y", "tac/m32net.tac"],
            environment={
                "M32NET_STATE_DIR": state,
                "M32NET_INTERFACE": "127.0.0.1",
                "M32NET_HTTP": "tcp:0",
                "M32NET_RTP_PORT": str(free_pair()),
                "M32NET_MDNS": "no",
            },
        )
        self.addCleanup(child.close)
        wait_for(lambda: "Engineer:" in child.text() or not child.running(), "the tac starts")
        self.assertIn("Engineer:", child.text())
        self.assertEqual(child.stop(), 0, child.text())


class PackagingTest(unittest.TestCase):
    def test_wheel_installs_everything(self) -> None:
        """A wheel has the packages, the plugin, the pages, the schema and the script."""
        target = Path(tempfile.mkdtemp(prefix="m32net-wheel-"))
        self.addCleanup(shutil.rmtree, target)
        source = target / "source"
        ignored = shutil.ignore_patterns(".git", ".venv", "_trial_temp*", "*.egg-info", "build")
        shutil.copytree(ROOT, source, ignore=ignored)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        pip += ["--no-deps", "--no-build-isolation", f"--target={target / 'site'}", str(source)]
        built = subprocess.run(pip, capture_output=True, text=True, check=False)
        self.assertEqual(built.returncode, 0, built.stderr)
        site = target / "site"
        wanted = {
            path.relative_to(ROOT)
            for top in ("protocols", "m32net")
            for path in (ROOT / top).rglob("*")
            if path.suffix in {".py", ".sql", ".html", ".css", ".js", ".typed"}
        } | {Path("twisted/plugins/m32net_plugin.py"), Path("bin/m32net")}
        self.assertEqual({one for one in wanted if not (site / one).exists()}, set())
        environment = {**os.environ, "PYTHONPATH": str(site)}
        shown = subprocess.run(
            [sys.executable, "-c", TWISTD, "--help"],
            cwd=target,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertRegex(shown.stdout, r"(?m)^ +m32net +Personal monitoring")
