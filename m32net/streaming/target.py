"""Another m32net server, as the one that moves its listeners there sees it (CON-51).

HTTP questions and their answers, each with a time-out and a bound; what follows from the answers
is decided in :mod:`m32net.streaming.moving`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError
from twisted.web.client import HTTPConnectionPool, _HTTP11ClientFactory
from twisted.web.iweb import IAgent

from m32net.asking import MAX_ANSWER, AnswerError, ask, words
from m32net.interfaces import Arrival, RefusedError
from protocols.control.messages import MAX_CHANNELS

T = TypeVar("T")

KEEP_S: Final = 15
"""An unused connection is kept so long: longer than between two looks."""
BATCH: Final = 1000
"""Arrivals in one request; some 200 bytes each."""

ChannelId = Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]


class Introduction(Struct, frozen=True):
    """What a server says of itself to another one, at ``GET /api/peer``.

    :ivar instance: of this process; another one after every start.
    :ivar https_port: where it takes arrivals; None without TLS.
    :ivar channels: ids of the channels that are sent.
    :ivar free_places: listeners it could take besides those it has.
    """

    name: str
    version: str
    node_id: str
    instance: str
    channels: tuple[int, ...]
    free_places: int
    https_port: int | None = None


class _MetaChannel(Struct, frozen=True):
    id: ChannelId
    enabled: bool = True


class _AudioMeta(Struct, frozen=True):
    channels: tuple[_MetaChannel, ...]
    ws: str


class _Health(Struct, frozen=True):
    status: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found at an address.

    :ivar introduction: None where the server is too old to have one.
    """

    channels: frozenset[int]
    introduction: Introduction | None


class _QuietFactory(_HTTP11ClientFactory):
    """Not two lines in the log for every connection."""

    noisy = False


def quiet_pool(reactor: Any) -> Any:
    """Keeps one connection to each server.

    A server is looked at so often that new connections would exceed what it allows an address.
    """
    pool: Any = HTTPConnectionPool(reactor)  # type: ignore[no-untyped-call]
    pool.maxPersistentPerHost = 1
    pool.cachedConnectionTimeout = KEEP_S
    pool._factory = _QuietFactory
    return pool


class OtherServer:
    """The server at one base address.

    :param clock: for time-outs.
    :param agent: connects to it; :param base: ``http://host:port`` without a slash.
    :param label: what it is called in refusals.
    :param token: for its routes that need one.
    """

    def __init__(
        self, clock: Any, agent: IAgent, base: str, label: str, token: str | None = None
    ) -> None:
        self._clock = clock
        self._agent = agent
        self.base = base
        self._label = label
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def look(self) -> Facts:
        """Whether it is an m32net that is well, and what it has.

        :raises RefusedError: it is not.
        :raises Exception: it can't be reached that way.
        """
        status, data = await self.call("GET", "/audio-meta")
        if status == 307:
            raise RefusedError("moving", f"{self._label} sends its own listeners elsewhere", 409)
        meta = self._decoded(data, _AudioMeta) if status == 200 else None
        if meta is None:
            raise RefusedError("no_server", f"{self._label} is no m32net server", 409)
        await self._check_health()
        status, data = await self.call("GET", "/api/peer")
        introduction = self._decoded(data, Introduction) if status == 200 else None
        channels = frozenset(one.id for one in meta.channels if one.enabled)
        return Facts(channels, introduction)

    async def _check_health(self) -> None:
        status, data = await self.call("GET", "/health")
        health = self._decoded(data, _Health)
        if health is None or status not in {200, 503}:
            raise RefusedError("no_server", f"{self._label} does not tell how it is", 409)
        if status == 503:
            reasons = "; ".join(health.reasons) or health.status
            raise RefusedError("unhealthy", f"{self._label} is unhealthy: {reasons}", 409)

    async def answers(self) -> bool:
        """Whether it is there and well, now."""
        try:
            status, _ = await self.call("GET", "/health")
        except CancelledError:
            raise
        except Exception:
            return False
        return status == 200

    async def announce(self, arrivals: Sequence[Arrival]) -> None:
        """Tell it who is coming.

        :raises RefusedError: it does not take that from us; :raises Exception: not reached.
        """
        for start in range(0, len(arrivals), BATCH):
            some = [asdict(one) for one in arrivals[start : start + BATCH]]
            await self.demand("POST", "/api/peer/arrivals", {"arrivals": some})

    async def demand(self, method: str, path: str, body: object) -> None:
        """:raises RefusedError: with its own words, if the answer is not 200."""
        status, data = await self.call(method, path, body)
        if status != 200:
            said = self._decoded(data, dict[str, Any]) or {}
            error = said.get("error")
            why = error.get("message") if isinstance(error, dict) else f"status {status}"
            raise RefusedError("refused", f"{self._label}: {why}", 409)

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of one request; a redirect is not followed.

        :raises Exception: none came, or not in time.
        """
        try:
            answer = await ask(
                self._clock,
                self._agent,
                method,
                self.base + path,
                body=None if body is None else msgspec.json.encode(body),
                headers=self._headers,
                limit=MAX_ANSWER,
            )
        except AnswerError as error:
            raise RefusedError("no_server", f"{self._label}: {error}", 409) from None
        return answer.status, answer.body

    @staticmethod
    def _decoded(data: bytes, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None


async def find(
    clock: Any, host: str, port: int, agent: IAgent, agent_for_peers: IAgent | None
) -> tuple[OtherServer, Facts]:
    """Look at ``host:port`` over HTTP, and over HTTPS where plain HTTP gets no answer.

    :raises RefusedError: there is no server that could take listeners; one line.
    """
    label = f"{host}:{port}"
    plain = OtherServer(clock, agent, f"http://{host}:{port}", label)
    try:
        return plain, await plain.look()
    except (RefusedError, CancelledError):
        raise
    except ConnectError as error:
        raise RefusedError("unreachable", f"{label} can't be reached: {error}", 409) from None
    except Exception as error:
        reason = words(error)
    if agent_for_peers is None:
        raise RefusedError("unreachable", f"{label} does not answer: {reason}", 409)
    secure = OtherServer(clock, agent_for_peers, f"https://{host}:{port}", label)
    try:
        return secure, await secure.look()
    except (RefusedError, CancelledError):
        raise
    except Exception as error:
        why = words(error)
        raise RefusedError(
            "unreachable",
            f"{label} answers neither HTTP nor HTTPS that is trusted here ({why}); --peer-ca "
            "names the certificates of other servers to trust",
            409,
        ) from None
