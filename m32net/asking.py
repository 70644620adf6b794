"""One HTTP request and its answer, within bounds: for all that asks a server something.

The answer's size and the time it takes are bounded, redirects are not followed, and nothing is
inflated: what comes encoded although nobody wanted that is refused.  What is asked, and what
follows from the answer, is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.python.url import URL
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from m32net.interfaces import RefusedError

TIMEOUT_S: Final = 5.0
MAX_ANSWER: Final = 1024 * 1024


class AnswerError(Exception):
    """The answer can't be taken: it is too long, or encoded; one line."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came.

    :ivar status: the HTTP status.
    :ivar body: as it was sent.
    """

    status: int
    body: bytes


def ask(
    clock: Any,
    agent: IAgent,
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    limit: int = MAX_ANSWER,
) -> Deferred[Answer]:
    """Make one request.

    :param clock: for the time-out, which is for the whole of it.
    :param url: ``http://host:port/path``; host names may be international ones.
    :param body: sent as JSON, which it must be.
    :param limit: bytes of the answer at most; no more than that and one read is ever kept.
    :returns: cancelled, it lets go of the connection and fails with ``CancelledError`` at once.
        Else it fails with :class:`AnswerError`, Python's ``TimeoutError`` or what the agent has.
    """
    sent = Headers({"Accept-Encoding": ["identity"]})
    for name, value in (headers or {}).items():
        sent.setRawHeaders(name, [value])
    if body is not None:
        sent.setRawHeaders("Content-Type", ["application/json"])
    address = URL.from_text(url).to_uri().to_text().encode("ascii")
    content = None if body is None else _Body(body)
    made: Any = agent.request(method.encode("ascii"), address, sent, content)
    return _whole(made.addCallback(_take, limit)).addTimeout(timeout_s, clock, _late)


def words(error: BaseException) -> str:
    """What went wrong, in one line for people."""
    reasons = getattr(error, "reasons", None)  # of twisted.web's ResponseFailed
    if reasons:
        error = getattr(reasons[0], "value", error)
    if isinstance(error, RefusedError):
        return error.message
    return str(error) or type(error).__name__


@implementer(IBodyProducer)
class _Body:
    """A request's body, small enough to be written in one go."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All is written already."""

    def resumeProducing(self) -> None:
        """All is written already."""

    def stopProducing(self) -> None:
        """All is written already."""


def _whole(asked: Deferred[Answer]) -> Deferred[Answer]:
    """The same; an Agent that is cancelled fails in one way here and in another there."""

    def told(result: Any) -> None:
        if not (gone or waiting.called):
            waiting.callback(result)

    def let_go(_: object) -> None:
        gone.append(True)
        asked.cancel()

    gone: list[bool] = []
    waiting: Deferred[Answer] = Deferred(let_go)
    asked.addBoth(told)
    return waiting


def _late(result: Any, timeout_s: float) -> Any:
    if isinstance(result, Failure):
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return result


def _take(response: Any, limit: int) -> Deferred[Answer]:
    encodings = response.headers.getRawHeaders(b"content-encoding", [])
    encoded = any(one.strip().lower() not in (b"", b"identity") for one in encodings)
    refusal = AnswerError("the answer is encoded, which was not asked for") if encoded else None
    taking = _Taking(response.code, limit, refusal)
    response.deliverBody(taking)
    return taking.done


class _Taking(Protocol):
    """Takes the answer's body until it is too long."""

    def __init__(self, status: int, limit: int, refusal: AnswerError | None) -> None:
        self.done: Deferred[Answer] = Deferred(lambda _: self._let_go(CancelledError()))
        self._status = status
        self._limit = limit
        self._refusal = refusal
        self._over = False
        self._data = bytearray()

    def connectionMade(self) -> None:
        if self._refusal is not None:
            self._let_go(self._refusal)

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        self._data += data
        if len(self._data) > self._limit:
            self._let_go(AnswerError(f"the answer is longer than {self._limit} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._over:
            return
        self._over = True
        if reason.check(ResponseDone, PotentialDataLoss):  # type: ignore[no-untyped-call]
            self.done.callback(Answer(self._status, bytes(self._data)))
        else:
            self.done.errback(reason)

    def _let_go(self, error: Exception) -> None:
        """Neither keep what came nor wait for more."""
        if self._over:
            return
        self._over = True
        self._data.clear()
        if self.transport is not None:
            self.transport.loseConnection()
        self.done.errback(error)
