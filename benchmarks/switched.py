"""Two machines on a switch whose cable can be pulled: three namespaces and a bridge.

When the cable is pulled both ends keep their carrier, addresses and routes, as phones do whose
access point has lost the way; frames are just not passed on.  Needs root and iproute2.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

NETWORK = "198.18.9.{}"  # RFC 2544: for benchmarks
_CLONE_NEWNET = 0x4000_0000


class NoSwitch(Exception):  # noqa: N818 - it states a condition, and reads as one
    """Why there is none: one line."""


class Switch:
    """The ends are 1 and 2; the switch itself has an address too, 3."""

    def __init__(self) -> None:
        self._names = [f"m32switch{os.getpid()}{end}" for end in ("s", 1, 2)]
        self._made: list[str] = []

    def address(self, end: int) -> str:
        return NETWORK.format(end)

    def prefix(self, end: int) -> tuple[str, ...]:
        """What to put before a command that is to run on that end."""
        return ("ip", "netns", "exec", self._names[end])

    def pull(self, end: int) -> None:
        """Pull this end's cable."""
        _run("ip", "-n", self._names[0], "link", "set", f"p{end}", "nomaster")

    def plug(self, end: int) -> None:
        _run("ip", "-n", self._names[0], "link", "set", f"p{end}", "master", "switch")

    @contextmanager
    def on_the_switch(self) -> Iterator[None]:
        """Sockets that this thread makes in the block are on the switch itself."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/ns/net") as home, open(f"/run/netns/{self._names[0]}") as there:  # noqa: PTH123
            _enter(libc, there.fileno())
            try:
                yield
            finally:
                _enter(libc, home.fileno())

    def make(self) -> None:
        """:raises NoSwitch: a step was refused."""
        middle = self._names[0]
        for name in self._names:
            _run("ip", "netns", "add", name)
            self._made.append(name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", middle, "link", "add", "name", "switch", "type", "bridge")
        _run("ip", "-n", middle, "addr", "add", self.address(3) + "/24", "dev", "switch")
        _run("ip", "-n", middle, "link", "set", "switch", "up")
        for end in (1, 2):
            name = self._names[end]
            _run("ip", "link", "add", "e0", "netns", name, "type", "veth",
                 "peer", "name", f"p{end}", "netns", middle)  # fmt: skip
            _run("ip", "-n", name, "addr", "add", self.address(end) + "/24", "dev", "e0")
            _run("ip", "-n", name, "link", "set", "e0", "up")
            _run("ip", "-n", middle, "link", "set", f"p{end}", "up")
            self.plug(end)

    def remove(self) -> None:
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextmanager
def switch() -> Iterator[Switch]:
    """:raises NoSwitch: not root, or a tool or the kernel lacks something."""
    if os.geteuid() != 0:
        raise NoSwitch("needs root for network namespaces")
    if shutil.which("ip") is None:
        raise NoSwitch("not installed: ip")
    one = Switch()
    try:
        one.make()
        yield one
    finally:
        one.remove()


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoSwitch(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
