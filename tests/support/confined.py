"""Starts a program under the restrictions of a systemd unit, without systemd.

    python -m tests.support.confined UNIT WRITABLE PROGRAM [ARGUMENT ...]

Reads the unit's ``SystemCallFilter``, ``RestrictAddressFamilies``, ``MemoryDenyWriteExecute``,
``CapabilityBoundingSet`` and ``ProtectSystem`` and does with libseccomp, prctl(2) and mount(2) what
systemd does with them.  Capabilities and mounts need root; the rest does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

ALLOW = 0x7FFF0000
REFUSE = 0x00050000 | errno.EPERM
CMP_EQ = 4
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 24, 38, 65
LAST_CAPABILITY = 40
CAPABILITIES = {"CAP_SYS_NICE": 23, "CAP_NET_BIND_SERVICE": 10}
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    0x20000, 1, 32, 4096, 16384, 1 << 18,
)  # fmt: skip

libc = ctypes.CDLL(None, use_errno=True)


class ArgCmp(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def settings(unit: Path) -> dict[str, list[str]]:
    """Every value of every key, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def calls_of(name: str) -> set[str]:
    """The system calls of a group such as ``@system-service``, or one call."""
    if not name.startswith("@"):
        return {name}
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    words = [line.strip() for line in listing.splitlines()[1:]]
    return set().union(*(calls_of(word) for word in words if word and word[0] != "#"))


def allowed_calls(filters: list[str]) -> set[str]:
    allowed = calls_of("@default")
    for line in filters:
        names = line.removeprefix("~").split()
        calls = set().union(*(calls_of(name) for name in names))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def filter_calls(allowed: set[str], families: list[str]) -> None:
    """Everything else fails with EPERM from now on, in children too."""
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(REFUSE)))
    for name in sorted(allowed - {"socket"}):
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert lib.seccomp_rule_add(context, ctypes.c_uint32(ALLOW), number, 0) == 0, name
    number = lib.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        only = ArgCmp(0, CMP_EQ, FAMILIES[family], 0)
        rule = lib.seccomp_rule_add_array
        assert rule(context, ctypes.c_uint32(ALLOW), number, 1, ctypes.byref(only)) == 0
    assert lib.seccomp_load(context) == 0, "no seccomp"


def mount(source: str, target: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def protect_system(writable: str) -> None:
    """The root file system read-only, as ``ProtectSystem=strict`` has it, but for one directory."""
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", MS_REC | MS_PRIVATE)
    mount(writable, writable, MS_BIND)
    mount("none", "/", MS_REMOUNT | MS_BIND | MS_RDONLY)


def main(unit: str, writable: str, *command: str) -> None:
    wanted = settings(Path(unit))
    allowed = allowed_calls(wanted["SystemCallFilter"])
    if os.geteuid() == 0:
        if wanted.get("ProtectSystem") == ["strict"]:
            protect_system(writable)
        kept = {CAPABILITIES[name] for name in wanted["CapabilityBoundingSet"][0].split()}
        for number in range(LAST_CAPABILITY + 1):
            if number not in kept:
                libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if wanted.get("MemoryDenyWriteExecute") == ["yes"] and libc.prctl(PR_SET_MDWE, 1, 0, 0, 0):
        print("this kernel cannot refuse writable code; not tested", file=sys.stderr)
    filter_calls(allowed, wanted["RestrictAddressFamilies"][0].split())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
