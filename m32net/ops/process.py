"""The process: what it uses of the machine (CPU over the last seconds, resident memory), and how
it is set up before it starts.

Measured from the process's own clock and ``/proc``, without a further library.
"""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

INTERVAL_S: Final = 1.0
WINDOW: Final = 5
"""Intervals the CPU figure is averaged over."""
FULL_SEARCH_AFTER: Final = 500
"""Searches of the middle generation before a full one; Python's own 10 come in seconds."""
HANGING_S: Final = 1.0
"""A process that has to end has this long for noticing it."""
FILES_BESIDES: Final = 64
"""What the server has open besides its connections, at most: some 25, and files being written."""
_STDERR: Final = 2
_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Resident memory of this process; where there is no ``/proc``, its peak so far."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


class ProcessMeter(Service):
    """Samples the CPU time once a second while it runs.

    :param cpu_s: CPU seconds of all threads, user and system.
    :param monotonic_s: the time these are set against.
    """

    def __init__(
        self,
        clock: IReactorTime,
        cpu_s: Callable[[], float] = time.process_time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cpu_s = cpu_s
        self._monotonic_s = monotonic_s
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW + 1)
        self._sampling = LoopingCall(self._sample)
        self._sampling.clock = clock
        self._sample()

    def _sample(self) -> None:
        self._samples.append((self._monotonic_s(), self._cpu_s()))

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._sampling.start(INTERVAL_S)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._sampling.running:
            self._sampling.stop()

    def cpu_percent(self) -> float:
        """CPU in per cent of one core over the last :data:`WINDOW` seconds; 0 at the start."""
        at, used = self._samples[0]
        span = self._monotonic_s() - at
        if span <= 0:
            return 0.0
        return 100.0 * (self._cpu_s() - used) / span

    def memory_mb(self) -> float:
        """Resident memory in MB (10^6 bytes)."""
        return resident_bytes() / 1e6


def allow_many_files() -> int:
    """Raise this process's limit of open files as far as it may; returns the limit.

    A listener takes one; the usual soft limit of 1,024 would end at about a thousand.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def too_few_files(limit: int, connections: int) -> str:
    """One line for people if this limit of open files does not do for so many connections."""
    needed = connections + FILES_BESIDES
    if limit >= needed or limit == resource.RLIM_INFINITY:
        return ""
    most = max(0, limit - FILES_BESIDES)
    return (
        f"The limit of open files is {limit}; {connections} connections need {needed}. "
        f"About {most} will find room. Raise it (ulimit -n {needed}, or LimitNOFILE={needed} in "
        "the unit)"
    )


def spare_the_collector() -> None:
    """Take what exists now out of Python's search for cyclic garbage.

    A full search of everything a running server has loaded stops all threads for 50 ms or more,
    which is ten frames of audio.  What is there after the start stays anyway.  To be called when
    the server has started, and whenever nobody listens, so that full searches while somebody does
    are rare (:data:`FULL_SEARCH_AFTER`) and short.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_SEARCH_AFTER)


def steady_timers(reactor: Any) -> None:
    """Let the reactor's timers go by the monotonic clock; to be called before there are any.

    Twisted's go by wall time: when that is set back, heartbeats, reports and time-outs would wait
    as long, and a listener without heartbeats is taken for gone.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def end_within(seconds: int) -> None:
    """Whatever hangs from now on, a disk or a library: the process has ended then.

    With status 0, :data:`HANGING_S` before, where Python still runs.  Where it does not, because
    the main thread does not come back from a library, a signal is not even noticed: then a thread
    that needs no Python ends the process with status 1, and says on standard error where it hung,
    unless that is somebody's terminal.
    """
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, max(seconds - HANGING_S, seconds / 2))
    faulthandler.dump_traceback_later(seconds, exit=True, file=_where_it_hung())


def _where_it_hung() -> int:
    """A descriptor for what only programmers understand."""
    try:
        os.fstat(_STDERR)
    except OSError:  # closed
        return os.open(os.devnull, os.O_WRONLY)
    return os.open(os.devnull, os.O_WRONLY) if os.isatty(_STDERR) else _STDERR


def claim(directory: Path, name: str = "server.lock") -> int:
    """Make this process the only one with this role in a state directory, until it ends.

    Two servers on one directory would overwrite each other's settings.  Never waits: who wants to
    follow another process asks again.

    :returns: a descriptor that must stay open.
    :raises BlockingIOError: another process has it.
    :raises OSError: the lock file cannot be made.
    """
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
