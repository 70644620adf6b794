"""Two network namespaces joined by a veth pair: a wire on which the kernel cuts GSO messages.

The sending end is like a common network card: checksums are left to it, but it does not cut UDP
segments (``tx-udp-segmentation off``), so the kernel cuts them just before the driver.  Needs root
(CAP_SYS_ADMIN, CAP_NET_ADMIN), iproute2 and ethtool; both namespaces are gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

NETWORK = "198.18.7.{}"  # RFC 2544: for benchmarks


class NoNamespace(Exception):  # noqa: N818 - it states a condition, and reads as one
    """Why there is none: one line."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Command prefixes of the two ends, and addresses.

    :ivar nobody: an address on the wire whose frames the far end drops unread, because they are
        for another card: what remains is what the sender spends.
    """

    sender: Sequence[str]
    receiver: Sequence[str]
    receiver_host: str
    nobody: str


@contextmanager
def wire() -> Iterator[Wire]:
    """:raises NoNamespace: not root, or a tool or the kernel lacks something."""
    if os.geteuid() != 0:
        raise NoNamespace("needs root for network namespaces")
    missing = [tool for tool in ("ip", "ethtool") if shutil.which(tool) is None]
    if missing:
        raise NoNamespace(f"not installed: {', '.join(missing)}")
    names = [f"m32bench{os.getpid()}{end}" for end in "ab"]
    made: list[str] = []
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            made.append(name)
        yield _connect(*names)
    finally:
        for name in made:  # their interfaces go with them
            subprocess.run(["ip", "netns", "del", name], check=False)


def _connect(first: str, second: str) -> Wire:
    _run("ip", "link", "add", "m0", "netns", first, "type", "veth",
         "peer", "name", "m1", "netns", second)  # fmt: skip
    for number, (name, interface) in enumerate(((first, "m0"), (second, "m1")), start=1):
        _run("ip", "-n", name, "addr", "add", NETWORK.format(number) + "/29", "dev", interface)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "link", "set", interface, "up")
        _run(
            "ip", "netns", "exec", name,
            "ethtool", "-K", interface, "tx-udp-segmentation", "off",
        )  # fmt: skip
    nobody = NETWORK.format(3)
    _run("ip", "-n", first, "neigh", "replace", nobody, "lladdr", "02:00:00:00:00:99",
         "dev", "m0", "nud", "permanent")  # fmt: skip
    return Wire(
        sender=("ip", "netns", "exec", first),
        receiver=("ip", "netns", "exec", second),
        receiver_host=NETWORK.format(2),
        nobody=nobody,
    )


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoNamespace(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
