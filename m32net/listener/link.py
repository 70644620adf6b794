"""What a listener has with one server: its address, the control connection, REST, and its clock.

Opens, asks and closes; when, is decided by :mod:`m32net.listener.session`, and for a second
server while moving by :mod:`m32net.listener.move`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.python.failure import Failure

from m32net.listener.address import ServerAddress
from m32net.listener.faults import explain, is_of_tls, is_untrusted, short
from m32net.listener.server_api import AudioMeta, ServerApi, Trust, endpoint
from m32net.listener.settings import Mix
from m32net.listener.thresholds import Thresholds, choose
from protocols.clock.ntp import NtpFilter
from protocols.control import events
from protocols.control.base_protocol import wall_clock_ms
from protocols.control.client_protocol import (
    ControlClientFactory,
    ControlClientProtocol,
    connect,
)
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient
from protocols.control.messages import ChannelRequest, ClientConfig, Hello

BYE_TIMEOUT_S: Final = 1.0
"""How long a server may take to let go of a listener that leaves."""

Hear = Callable[[ControlClient, events.ClientSessionEvent], None]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the listener asks the server for; None leaves it to the server.

    :ivar channels: ids in the order wanted; None for all there are.
    :ivar codec: ``opus``, ``L16`` or ``L24``.
    :ivar pin: for a server that asks for one.
    :ivar send_muted: also channels that the mix mutes, as recordings need them.
    :ivar retry: come back after a failure; False ends at the first one.
    """

    name: str | None = None
    channels: tuple[int, ...] | None = None
    codec: str | None = None
    layout: str | None = None
    frame_ms: float | None = None
    sample_rate: int | None = None
    pin: str | None = None
    mix: Mix = field(default_factory=Mix)
    send_muted: bool = False
    retry: bool = True


@dataclass(frozen=True, slots=True)
class Means:
    """What a listener has to reach servers with.

    :ivar http: for REST, from :func:`~m32net.listener.server_api.http_client`.
    :ivar interface: local address to connect from; empty for any.
    :ivar trust: what servers' certificates are checked by; None: what the system trusts.
    :ivar environment: for the thresholds (STR-27).
    :ivar tell: called with sentences for people.
    :ivar random: gives numbers 0 <= x < 1.
    """

    reactor: Any
    http: Any
    wishes: Wishes = field(default_factory=Wishes)
    interface: str = ""
    trust: Trust | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[str], object] = lambda text: None
    random: Callable[[], float] = lambda: 0.5
    seconds: Callable[[], float] = time.monotonic
    wall_ms: Callable[[], float] = wall_clock_ms
    open_control: Callable[[ControlClientFactory, Any], Deferred[ControlClient]] = connect


class _Shell(ControlClientProtocol):
    """Keeps why the connection was lost, as TLS has it."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.factory.fault = reason
        super().connectionLost(reason)


class ServerLink:
    """One server.

    :param client_id: as it knows us, or another server did; None for a newcomer.
    :param token: session token that goes with it.
    :ivar client: the control connection; None while there is none.
    :ivar meta: what it last said it offers.
    :ivar step_rate: the best sample rate, as it told us.
    """

    def __init__(
        self,
        means: Means,
        address: ServerAddress,
        client_id: str | None = None,
        token: str | None = None,
    ) -> None:
        self.address = address
        self.client_id = client_id
        self.token = token
        self.client: ControlClient | None = None
        self.meta: AudioMeta | None = None
        self.step_rate: int | None = None
        self.round_trip_ms: float | None = None
        self.clock_offset_ms: float | None = None
        self.untrusted = False
        """Its certificate was refused."""
        self.api = ServerApi(means.http, address.http)
        self._means = means
        self._clock = NtpFilter()
        self._opening: Deferred[ControlClient] | None = None
        self._learning: Deferred[Any] | None = None

    def elsewhere(self, address: ServerAddress) -> ServerLink:
        """The same listener at another server."""
        return ServerLink(self._means, address, self.client_id, self.token)

    # -- the connection

    def open(
        self, hear: Hear, opened: Callable[[], object], failed: Callable[[str], object]
    ) -> None:
        """Connect and say hello.

        :param hear: called with everything the server says afterwards.
        :param failed: called with the reason.
        """
        means = self._means
        hello = Hello(self.client_id, means.wishes.name, self.token, means.wishes.pin)
        factory: Any = ControlClientFactory(
            self.address.websocket,
            hear,
            reactor=means.reactor,
            make_session=lambda: ClientSession(hello, spread=means.random, clock=self._clock),
            seconds=means.seconds,
            wall_ms=means.wall_ms,
        )
        factory.protocol = _Shell
        factory.fault = None
        way = endpoint(
            means.reactor,
            self.address.host,
            self.address.port,
            secure=self.address.secure,
            interface=means.interface,
            trust=means.trust,
        )

        opening = self._opening = means.open_control(factory, way)

        def connected(client: ControlClient) -> None:
            if self._opening is not opening:
                client.abort()
                return
            self._opening = None
            self.client = client
            opened()

        def not_connected(failure: Failure) -> None:
            if self._opening is not opening:
                return
            self._opening = None
            self.untrusted = is_untrusted(factory.fault)
            if is_of_tls(factory.fault):
                failure = factory.fault
            ca = None if means.trust is None else means.trust.file
            reason = explain(failure, self.address, ca)
            failed(f"{self.address} cannot be reached ({reason})")

        opening.addCallbacks(connected, not_connected)

    def heard(self, event: events.ClientSessionEvent) -> None:
        """Note what the server says of us and of its clock."""
        if isinstance(event, events.Welcomed):
            self.client_id = event.welcome.client_id
            self.token = event.welcome.session_token or None
        elif isinstance(event, events.ClockUpdated):
            self.clock_offset_ms = event.offset_ms
            self.round_trip_ms = event.sample.delay
        elif isinstance(event, events.SessionClosed):
            self.client = None

    def close(self, reason: str) -> Deferred[None]:
        """Stop whatever is under way, say bye and let go.

        :returns: fires when the connection is gone, after :data:`BYE_TIMEOUT_S` at most.
        """
        self.drop()
        gone: Deferred[None] = Deferred()
        client, self.client = self.client, None
        if client is None:
            gone.callback(None)
        else:
            client.close(reason)
            client.when_gone(lambda: gone.callback(None))
            gone.addTimeout(BYE_TIMEOUT_S, self._means.reactor, lambda *_: client.abort())
        return gone

    def drop(self) -> None:
        """Stop connecting and fetching."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
        self._drop_learning()

    # -- what it offers

    def learn(self, learned: Callable[[Thresholds], object]) -> None:
        """Fetch what the server offers; a server without REST is asked for everything.

        :param learned: called with the thresholds that hold here; not if another :meth:`learn`
            or a :meth:`drop` comes first.
        """
        self._drop_learning()
        learning = self._learning = self._fetch()

        def done(thresholds: Thresholds | None) -> None:
            if self._learning is learning:
                self._learning = None
                learned(choose(self._means.environment, thresholds))

        learning.addCallbacks(done, lambda failure: None)  # it can only be cancelled

    @inlineCallbacks
    def _fetch(self) -> Generator[Deferred[Any], Any, Thresholds | None]:
        """One after the other, so that one connection does."""
        try:
            self.meta = yield self.api.audio_meta()
        except CancelledError:
            raise
        except Exception as error:
            failure = Failure(error)  # type: ignore[no-untyped-call]
            ca = None if self._means.trust is None else self._means.trust.file
            reason = explain(failure, self.address, ca)
            self._means.tell(f"/audio-meta could not be fetched ({reason})")
        try:
            thresholds: Thresholds = yield self.api.jitter_thresholds()
        except CancelledError:
            raise
        except Exception:
            return None
        return thresholds

    def _drop_learning(self) -> None:
        learning, self._learning = self._learning, None
        if learning is not None:
            learning.cancel()

    # -- what we want

    def request(self, udp_port: int) -> None:
        """Ask for the audio that is wished for."""
        assert self.client is not None
        wishes = self._means.wishes
        config: Any = ClientConfig(
            channels=self._channels(),
            sample_rate=min(filter(None, (self.step_rate, wishes.sample_rate)), default=None),
            compression=wishes.codec,  # type: ignore[arg-type]
            layout=wishes.layout,  # type: ignore[arg-type]
            udp_port=udp_port,
            frame_ms=wishes.frame_ms,
        )
        self.client.configure(config)

    def _channels(self) -> tuple[ChannelRequest, ...]:
        """The channels to ask for; none listed means all."""
        wishes = self._means.wishes
        wanted = wishes.channels
        there = None if self.meta is None else self.meta.enabled
        if wanted is not None and there:
            absent = [str(one) for one in wanted if one not in there]
            if absent:
                self._means.tell(f"the server does not send channel {', '.join(absent)}")
            wanted = tuple(one for one in wanted if one in there) or wanted
        muted = set()
        if not wishes.send_muted:
            muted = {one.id for one in wishes.mix.channels if one.mute}
        if wanted is None and muted and there:
            wanted = there
        return tuple(ChannelRequest(one, mute=one in muted) for one in wanted or ())


def lost(event: events.SessionClosed) -> str:
    """How a connection ended, for people."""
    return f"the connection was lost ({short(event.reason)})"
