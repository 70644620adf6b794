"""STR-13: avahi, the mDNS of most Linux machines, sees the server come, and go.

Everything runs in two network namespaces joined by a veth pair, the server in one and avahi (with
a D-Bus of its own) in the other, so that no packet leaves the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.trial import unittest

import m32net

ROOT = Path(m32net.__file__).parent.parent
PROGRAMS = ("ip", "unshare", "dbus-daemon", "avahi-daemon", "avahi-browse", "avahi-resolve")
SERVER, OTHER = "10.99.7.1", "10.99.7.2"
PATIENCE_S = 15.0

ANNOUNCE = """
import sys
from m32net.discovery.mdns import Advertisement, ZeroconfAnnouncer
name, interface = sys.argv[1:]
announcer = ZeroconfAnnouncer(Advertisement(name, 8080, "9.9.9"), interface)
print(announcer.announce(announcer.addresses()), flush=True)
sys.stdin.readline()
announcer.withdraw()
print("withdrawn", flush=True)
"""

DISCOVER = """
import sys
from m32net.discovery.mdns import discover
for found in discover(2.0, sys.argv[1]):
    print(found.name, found.url, found.role, found.version)
"""

DBUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
    <allow own="*"/><allow user="*"/>
  </policy>
</busconfig>
"""

AVAHI = """[server]
host-name=phone
use-ipv4=yes
use-ipv6=no
allow-interfaces={interface}
[publish]
publish-workstation=no
"""


def why_not() -> str | None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None


class Network:
    """Two namespaces and the cable between them."""

    def __init__(self) -> None:
        tag = f"{os.getpid() % 100000}"
        self.spaces = (f"m32a{tag}", f"m32b{tag}")
        self.links = (f"va{tag}", f"vb{tag}")

    def up(self) -> None:
        for space in self.spaces:
            ip("netns", "add", space)
        (a, b), (left, right) = self.spaces, self.links
        ip("link", "add", left, "netns", a, "type", "veth", "peer", "name", right, "netns", b)
        for space, link, address in ((a, left, SERVER), (b, right, OTHER)):
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", space, "link", "set", link, "up")

    def down(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Avahi(unittest.SynchronousTestCase):
    skip = why_not()
    timeout = 120

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.network = Network()
        self.addCleanup(self.network.down)
        try:
            self.network.up()
        except subprocess.CalledProcessError as error:
            raise unittest.SkipTest(f"no network namespaces here: {error.stderr.strip()}") from None
        self.start_avahi()

    def start_avahi(self) -> None:
        """A D-Bus and an avahi that nobody else sees; /run is theirs alone."""
        # A socket path holds 107 bytes at most; trial's directories are longer than that.
        socket = Path("/tmp") / f"m32net-dbus-{os.getpid()}"
        self.addCleanup(lambda: socket.unlink(missing_ok=True))
        self.bus = f"unix:path={socket}"
        (self.directory / "dbus.conf").write_text(DBUS.format(socket=socket))
        interface = self.network.links[1]
        (self.directory / "avahi.conf").write_text(AVAHI.format(interface=interface))
        bus = self.spawn(
            ["dbus-daemon", f"--config-file={self.directory}/dbus.conf", "--nofork", "--nopidfile"]
        )
        self.wait_for(socket.exists, bus)
        avahi = self.spawn(
            self.inside(
                1,
                "unshare",
                "--mount",
                "sh",
                "-c",
                "mount -t tmpfs none /run && mkdir -p /run/avahi-daemon && exec avahi-daemon"
                f" --no-rlimits --no-drop-root --no-chroot -f {self.directory}/avahi.conf",
            )
        )
        self.wait_for(lambda: "phone.local" in self.resolve("phone.local"), avahi)

    def inside(self, space: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.network.spaces[space], *command]

    def spawn(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.bus},
            stdout=options.pop("stdout", subprocess.DEVNULL),
            stderr=options.pop("stderr", subprocess.DEVNULL),
            text=True,
            **options,
        )
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()

    def wait_for(self, condition: Any, process: subprocess.Popen[str] | None = None) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            if process is not None and process.poll() is not None:
                self.fail(f"{process.args} ended with {process.returncode}")
            self.assertLess(time.monotonic(), until, "waited too long")
            time.sleep(0.1)

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            self.inside(1, *command),
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.bus},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout

    def resolve(self, host: str) -> str:
        return self.ask("avahi-resolve", "-4", "-n", host)

    def browse(self) -> list[list[str]]:
        """The fields of every resolved instance."""
        lines = self.ask("avahi-browse", "-rtp", "_m32net._tcp").splitlines()
        return [line.split(";") for line in lines if line.startswith("=")]

    def announce(self, name: str, space: int = 0, address: str = SERVER) -> subprocess.Popen[str]:
        """Start a server's announcement; it ends when it is told a line."""
        return self.spawn(
            self.inside(space, sys.executable, "-c", ANNOUNCE, name, address),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
        )

    def said(self, server: subprocess.Popen[str]) -> str:
        """What it announced, once it has."""
        assert server.stdout
        line = server.stdout.readline()
        self.assertIn("Announced", line)
        return line

    def withdraw(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin and server.stdout
        server.stdin.write("\n")
        server.stdin.flush()
        self.assertEqual(server.stdout.readline(), "withdrawn\n")

    def test_seen_found_and_withdrawn(self) -> None:
        """By avahi, and by ``m32net discover`` on avahi's machine, both on port 5353."""
        server = self.announce("m32-server")
        self.said(server)
        found = self.ask(sys.executable, "-c", DISCOVER, OTHER)
        self.assertEqual(found.split(), ["m32-server", f"http://{SERVER}:8080/", "master", "9.9.9"])
        (entry,) = self.browse()
        _, _, protocol, instance, kind, _, host, address, port, text = entry[:10]
        self.assertEqual(
            (protocol, instance, kind, host, address, port),
            ("IPv4", "m32-server", "_m32net._tcp", "m32-server.local", SERVER, "8080"),
        )
        for field in ('"path=/ws"', '"version=9.9.9"', '"role=master"'):
            self.assertIn(field, text)
        self.assertEqual(self.resolve("m32-server.local").split(), ["m32-server.local", SERVER])
        self.withdraw(server)
        self.wait_for(lambda: not self.browse())

    def test_names_that_are_taken(self) -> None:
        """A second server of the same name, and one with avahi's host name, get other names."""
        self.said(self.announce("m32-server"))
        second, third = self.announce("m32-server", 1, OTHER), self.announce("phone")
        self.assertIn("instance='m32-server-2', host='m32-server-2.local'", self.said(second))
        self.assertIn("instance='phone', host='phone-2.local'", self.said(third))
