"""Where recordings wait for the disk: on a thread of their own, not on the reactor's.

A slow disk may then delay recordings, but neither reports to the server nor what is heard, nor
for ever the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

    The thread ends when the reactor has shut down, or with :meth:`stop`.  One that hangs in a
    job, as a disk that is gone may have it, is left behind and does not keep the process.
    """

    def __init__(self, reactor: Any) -> None:
        self._given = 0  # changed by the reactor's thread only
        self._done = 0  # changed by the disk's thread only
        self._reactor = reactor
        self._pool = ThreadPool(minthreads=0, maxthreads=1, name="disk")
        daemon: Any = partial(ThreadPool.threadFactory, daemon=True)
        self._pool.threadFactory = daemon

    def __call__(self, job: Callable[[], Any]) -> Deferred[Any]:
        if not self._pool.started:
            self._pool.start()
            self._reactor.addSystemEventTrigger("after", "shutdown", self.stop)
        self._given += 1
        return deferToThreadPool(self._reactor, self._pool, self._do, job)

    def _do(self, job: Callable[[], Any]) -> Any:
        try:
            return job()
        finally:
            self._done += 1

    @property
    def busy(self) -> bool:
        """Whether a job is not done, wanted by anybody or not."""
        return self._done < self._given

    def stop(self) -> None:
        """End the thread, which has nothing to do any more; one that has is not waited for."""
        if self._pool.started and not self.busy:
            self._pool.stop()
