"""Where recordings wait for the disk: on a thread of their own, not on the reactor's.

A slow disk may then delay recordings, but neither reports to the server nor what is heard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

OnDisk = Callable[[Callable[[], Any]], "Deferred[Any]"]
"""Does jobs one after another, in the order given; each Deferred fires with the job's result."""


def at_once(job: Callable[[], Any]) -> Deferred[Any]:
    """An :data:`OnDisk` that waits for the disk here and now."""
    return maybeDeferred(job)


class DiskThread:
    """An :data:`OnDisk` with one thread, which starts with the first job.

    The thread ends when the reactor has shut down, or with :meth:`stop`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(minthreads=0, maxthreads=1, name="disk")

    def __call__(self, job: Callable[[], Any]) -> Deferred[Any]:
        if not self._pool.started:
            self._pool.start()
            self._reactor.addSystemEventTrigger("after", "shutdown", self.stop)
        return deferToThreadPool(self._reactor, self._pool, job)

    def stop(self) -> None:
        """Wait for the jobs that are left, and end the thread."""
        if self._pool.started:
            self._pool.stop()
