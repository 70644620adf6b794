"""Files of keys and certificates: small, private, and written whole or not at all.

A process that is killed while it writes leaves the old file or the new one (temporary file, fsync,
rename, fsync of the directory).  All of it blocks and belongs in a thread while the server runs.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 256 * 1024
"""A certificate with its chain has some 5 KiB; a bundle of a hundred CAs some 200."""
_UNFINISHED: Final = ".unfinished"


class TrustError(Exception):
    """Certificates that cannot be used; the message is one line: which, why and what to do."""


def read(path: Path) -> bytes:
    """:raises TrustError: it cannot be read, or is no file of a sensible size."""
    try:
        # Not waiting for whoever writes into a pipe of that name.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TrustError(f"{path} is no file")
            data = file.read(MAX_BYTES + 1)
    except OSError as reason:
        raise TrustError(f"cannot read {path}: {reason.strerror}") from None
    if len(data) > MAX_BYTES:
        raise TrustError(f"{path} has more than {MAX_BYTES // 1024} KiB; is it a PEM file?")
    return data


def write(path: Path, data: bytes) -> None:
    """Replace ``path``, readable by its owner only, in one step that survives a power cut.

    :raises TrustError: it cannot be written.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with suppress(FileNotFoundError):
            unfinished.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_directory(path.parent)
    except OSError as reason:
        raise TrustError(f"cannot write {path}: {reason.strerror}") from None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def private_directory(directory: Path) -> Iterator[None]:
    """Hold ``directory``, made if need be, for this process alone; others of ours wait.

    It and the files in it become readable by the owner only, whatever they were.  What a killed
    process left unfinished is removed.

    :raises TrustError: it cannot be made or used.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as reason:
        raise TrustError(f"cannot make the directory {directory}: {reason.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            _make_private(directory, descriptor)
        except OSError as reason:
            raise TrustError(
                f"cannot keep {directory} private: {reason.strerror}; whose is it?"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _make_private(directory: Path, descriptor: int) -> None:
    if os.fstat(descriptor).st_mode & 0o077:
        os.fchmod(descriptor, 0o700)
    for entry in os.scandir(directory):
        if entry.name.endswith(_UNFINISHED):
            os.unlink(entry.path)  # noqa: PTH108
        elif (
            entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_mode & 0o077
        ):
            os.chmod(entry.path, 0o600)  # noqa: PTH101
