"""Who listens: the life of every listener, as a core without I/O.

Control connections, REST calls and the clock come in; events (start these streams, stop those,
tell this connection something, close it) come out and are carried out by ``service``.  A
listener's states and their transitions are one table, in :mod:`m32net.streaming.listeners`;
closing, heartbeat time-out, ``bye`` and server stop all take the same way out (STR-5).
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from m32net.interfaces import Arrival, QualityReport, RefusedError
from m32net.streaming.door import Door
from m32net.streaming.formats import Pace, check_formats
from m32net.streaming.listeners import (
    TRANSITIONS,
    Departed,
    Input,
    Listener,
    Refused,
    RegistryEvent,
    SentAway,
    State,
    StreamsKept,
    StreamsStarted,
    StreamsStopped,
    Told,
    Welcomed,
)
from m32net.streaming.negotiation import Agreement, AudioOffer, agree, check_host, check_port
from m32net.streaming.profile import Profile
from protocols.control.messages import ClientConfig

MIGRATED: Final = "migrated"
"""The reason in a ``bye`` of who moved to the server it was sent to."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and times, in seconds where they are times."""

    max_listeners: int = 20
    heartbeat_timeout_s: float = 30.0
    grace_s: float = 5.0
    encoding_cores: float = 0.6
    """Share of one core that encoding may take by the estimate of ``cost``; beyond, formats that
    are not offered to all are refused."""


class Registry:
    """All listeners of one server.

    :param new_id: makes a client id nobody has had; :param new_token: makes a session token of
        at least 32 random bytes.  Both are injected, so a test knows them.
    :param door: what newcomers must show; without it, nothing.
    """

    def __init__(
        self,
        offer: AudioOffer,
        limits: Limits,
        *,
        new_id: Callable[[], str],
        new_token: Callable[[], str],
        door: Door | None = None,
    ) -> None:
        self.offer = offer
        self.limits = limits
        self.door = door or Door()
        self.refused = 0
        self.sent_away = 0
        self.arrivals = 0
        self._new_id = new_id
        self._new_token = new_token
        self._pace = Pace()
        self._by_link: dict[object, Listener] = {}
        self._by_id: dict[str, Listener] = {}
        self._events: deque[RegistryEvent] = deque()

    # -- reading ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Listener]:
        """Every listener that has been admitted."""
        return (one for one in self._by_id.values() if one.state != "arrived")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, client_id: str) -> Listener | None:
        return self._by_id.get(client_id)

    def of(self, link: object) -> Listener | None:
        return self._by_link.get(link)

    def events(self) -> Iterator[RegistryEvent]:
        """Take what has happened since the last call."""
        while self._events:
            yield self._events.popleft()

    def demand(self) -> dict[Profile, frozenset[int]]:
        """Which channels are to be encoded in which profile: nothing where nobody listens."""
        wanted: dict[Profile, set[int]] = {}
        for one in self._by_id.values():
            if one.agreement is not None and one.state in {"streaming", "detached"}:
                wanted.setdefault(one.agreement.profile, set()).update(one.agreement.channels)
        return {profile: frozenset(channels) for profile, channels in wanted.items()}

    # -- connections -----------------------------------------------------------------------

    def connected(self, link: object, host: str, now: float) -> None:
        """A control connection has opened; it is no listener before it says something."""
        one = Listener(self._new_id(), self._new_token(), host, link, since=now, heard=now)
        self.arrivals += 1
        self._by_link[link] = one
        self._by_id[one.client_id] = one

    def hello(
        self,
        link: object,
        now: float,
        *,
        client_id: str | None,
        token: str | None,
        name: str | None,
        pin: str | None = None,
    ) -> None:
        """The connection says who it is, perhaps a listener that was here before.

        One that another server has announced keeps the id it had there, and needs no PIN.
        """
        fresh = self._by_link.get(link)
        if fresh is None:
            return
        known = self._by_id.get(client_id) if client_id else None
        if (
            known is not None
            and known is not fresh
            and known.state != "arrived"
            and fresh.agreement is None
            and token is not None
            and hmac.compare_digest(known.token.encode(), token.encode())
        ):
            fresh = self._take_over(known, fresh, now)
        elif fresh.state == "arrived":
            arrival = self.door.arrival(client_id, token, now) if known is None else None
            if arrival is not None:
                self._adopt(fresh, arrival)
            elif self.door.elsewhere is None and not self._knows_pin(fresh, pin, now):
                return
        if not self._admit(fresh, now):
            return
        if name is not None:
            fresh.name = name
        self._events.append(Welcomed(fresh))

    def configure(self, link: object, config: ClientConfig, now: float) -> None:
        """The connection says what it wants to hear."""
        one = self._by_link.get(link)
        if one is None or not self._admit(one, now):
            return
        try:
            self._settle(one, config, now)
        except RefusedError as error:
            if one.refusals.take(1, now):
                self._events.append(Refused(link, error.code, error.message, fatal=False))
            else:
                message = f"{error.message}; too many such errors, the session is closed"
                self._turn_away(one, error.code, message)

    def _settle(self, one: Listener, config: ClientConfig, now: float) -> None:
        """Agree on what is wanted, and start it once there is a port to send it to.

        :raises RefusedError: it cannot be; nothing has changed then.
        """
        check_host(one.host)
        agreement = agree(config, self.offer)
        port = agreement.udp_port or one.udp_port
        if port is not None:
            agreement = agreement.at(port)
        others = [
            other.agreement
            for other in self._by_id.values()
            if other is not one and other.agreement is not None
        ]
        if port is not None:
            self._pace.check(one, agreement, others, self.offer, now)
        check_formats(agreement, others, self.offer, self.limits.encoding_cores)
        one.config = config
        one.udp_port = port
        if port is not None:
            self._start(one, agreement)

    def request_audio(
        self, host: str, udp_port: int, client_id: str | None, now: float
    ) -> Listener:
        """REST's way to name the UDP port (STR-36).

        Without ``client_id`` the newest connection from ``host`` that has named no port is
        meant, else the newest one.

        :raises RefusedError: 400 bad port, or one at which what was asked for cannot be sent;
            409 no control session from ``host``; 503 full.
        """
        check_port(udp_port)
        here = [
            one
            for one in self._by_link.values()
            if one.host == host and (one.state != "arrived" or self._may_be_silent)
        ]
        if client_id is not None:
            here = [one for one in here if one.client_id == client_id]
        if not here:
            raise RefusedError(
                "no_session", f"no control session from {host}: open the WebSocket /ws first", 409
            )
        one = next((one for one in reversed(here) if one.udp_port is None), here[-1])
        if not self._admit(one, now):
            raise RefusedError("server_full", "this server takes nobody now", 503)
        if one.config is None:
            one.udp_port = udp_port
        else:
            self._settle(one, msgspec.structs.replace(one.config, udp_port=udp_port), now)
        return one

    def heard(self, link: object, now: float) -> None:
        """A heartbeat (STR-5)."""
        one = self._by_link.get(link)
        if one is not None:
            one.heard = now

    def bye(self, link: object, reason: str = "bye") -> None:
        """The listener leaves, perhaps for the server it was sent to (CON-51)."""
        one = self._by_link.get(link)
        if one is None:
            return
        if reason == MIGRATED:
            self._leave(one, "the listener moved to the other server", migrated=True)
        else:
            self._leave(one, "the listener said bye")

    def lost(self, link: object, now: float) -> None:
        """The control connection is gone; streams go on for the grace period."""
        one = self._by_link.pop(link, None)
        if one is None:
            return
        one.link = None
        one.lost_at = now
        if self._step(one, "lost") == "gone":
            self._forget(one, None, "the control connection was lost")

    # -- the server's own changes ----------------------------------------------------------

    def change_offer(
        self, offer: AudioOffer, reason: str, fields: Mapping[str, Any] | None = None
    ) -> None:
        """The engineer changed format or mapping: streams that no longer fit end (STR-10).

        Listeners whose streams stay the same under the new offer are not disturbed, but those
        who asked for the old best rate hear of a better one: they may have asked for it because
        they were told to.
        """
        old, self.offer = self.offer, offer
        for one in list(self):
            if one.config is None:
                continue
            try:
                same = agree(one.config, offer)
            except RefusedError:
                same = None
            followed = one.config.sample_rate == old.sample_rate < offer.sample_rate
            if same is not None and not followed:
                same = replace(same, udp_port=one.udp_port)
                if one.agreement == same:
                    continue
            self._halt(one, reason)
            if one.state != "gone":
                self._events.append(Told(one, "config_changed", reason, fields or {}))

    def report(self, one: Listener, report: QualityReport) -> None:
        """Note what a listener experienced, and warn it when that is poor (STR-31)."""
        warning = one.reception.note(report)
        if warning is not None and one.link is not None:
            self._events.append(Told(one, "network_warning", warning))

    def tell_all(self, kind: str, reason: str, fields: Mapping[str, Any]) -> int:
        reached = [one for one in self if one.link is not None]
        self._events.extend(Told(one, kind, reason, fields) for one in reached)
        return len(reached)

    def tell(self, client_id: str, kind: str, reason: str, fields: Mapping[str, Any]) -> bool:
        """An event for one listener; False if it can't be reached now."""
        one = self._by_id.get(client_id)
        if one is None or one.link is None:
            return False
        self._events.append(Told(one, kind, reason, fields))
        return True

    def remove(self, client_id: str, reason: str) -> bool:
        one = self._by_id.get(client_id)
        if one is not None:
            self._leave(one, reason)
        return one is not None

    def stop(self, reason: str) -> None:
        """Everybody leaves."""
        for one in list(self._by_id.values()):
            self._leave(one, reason)

    # -- time ------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When :meth:`handle_timer` has something to do next; None if nobody is here."""
        return min((self._deadline(one) for one in self._by_id.values()), default=None)

    def handle_timer(self, now: float) -> None:
        for one in list(self._by_id.values()):
            if self._deadline(one) > now:
                continue
            if one.state == "detached" and one.heard + self.limits.heartbeat_timeout_s > now:
                self._leave(one, "the control connection did not come back")
            else:
                timeout = self.limits.heartbeat_timeout_s
                self._leave(one, f"no heartbeat for {timeout:g} s")

    def _deadline(self, one: Listener) -> float:
        silent = one.heard + self.limits.heartbeat_timeout_s
        if one.state == "detached" and one.lost_at is not None:
            return min(silent, one.lost_at + self.limits.grace_s)
        return silent

    # -- steps -----------------------------------------------------------------------------

    def _step(self, one: Listener, what: Input) -> State:
        one.state = TRANSITIONS[one.state].get(what, one.state)
        return one.state

    def _full(self) -> str:
        return f"the server is full: {self.limits.max_listeners} listeners at most"

    def _admit(self, one: Listener, now: float) -> bool:
        """Let a connection take a listener's place, if one is free (STR-6)."""
        if one.state != "arrived":
            return one.state != "gone"
        elsewhere = self.door.address_for(one.link)
        if elsewhere is not None:
            self._send_away(one, *elsewhere)
            return False
        if not one.trusted and not self._knows_pin(one, None, now):
            return False
        if len(self) >= self.limits.max_listeners:
            self.refused += 1
            self._turn_away(one, "server_full", self._full())
            return False
        one.heard = now
        self._step(one, "admit")
        return True

    def _turn_away(self, one: Listener, code: str, message: str) -> None:
        """It is told why, and its connection ends."""
        if one.link is not None:
            self._events.append(Refused(one.link, code, message, fatal=True))
        if one.agreement is not None:
            one.agreement = None
            self._events.append(StreamsStopped(one, message))
        self._step(one, "leave")
        self._forget(one, None, message)

    def _send_away(self, one: Listener, host: str, port: int) -> None:
        """Newcomers belong to another server now (CON-51)."""
        self.sent_away += 1
        if one.link is not None:
            self._events.append(SentAway(one.link, host, port))
        self._step(one, "leave")
        self._forget(one, None, f"sent to {host}:{port}")

    @property
    def _may_be_silent(self) -> bool:
        """Whether who has not said hello may still be let in, by REST."""
        return not self.door.guarded and self.door.elsewhere is None

    def _knows_pin(self, one: Listener, pin: str | None, now: float) -> bool:
        refused = self.door.try_pin(one.host, pin, now)
        one.trusted = refused is None
        if refused is not None:
            self._turn_away(one, refused.code, refused.message)
        return one.trusted

    def _adopt(self, one: Listener, arrival: Arrival) -> None:
        """A listener that another server has announced keeps who it was there."""
        del self._by_id[one.client_id]
        one.client_id, one.token, one.name = arrival.client_id, arrival.token, arrival.name
        one.trusted = True
        self._by_id[one.client_id] = one

    def _take_over(self, known: Listener, fresh: Listener, now: float) -> Listener:
        """A listener that is still known is back on a new connection."""
        link = fresh.link
        assert link is not None
        old_link = known.link
        del self._by_id[fresh.client_id]
        fresh.state = "gone"
        self._by_link[link] = known
        if old_link is not None:
            self._by_link.pop(old_link, None)
            self._events.append(
                Refused(old_link, "replaced", "this listener connected again", fatal=True)
            )
        known.link = link
        known.lost_at = None
        known.heard = now
        self._step(known, "back")
        if known.host != fresh.host:
            known.host = fresh.host
            self._halt(known, "the listener's address changed")
        return known

    def _start(self, one: Listener, agreement: Agreement) -> None:
        if one.state == "streaming" and one.agreement == agreement:
            self._events.append(StreamsKept(one))
            return
        if one.agreement is not None:
            self._events.append(StreamsStopped(one, "replaced by another configuration"))
        one.agreement = agreement
        self._step(one, "start")
        self._events.append(StreamsStarted(one, agreement))

    def _halt(self, one: Listener, reason: str) -> None:
        if one.agreement is None:
            return
        one.agreement = None
        self._events.append(StreamsStopped(one, reason))
        if self._step(one, "halt") == "gone":
            self._forget(one, one.link, reason)

    def _leave(self, one: Listener, reason: str, *, migrated: bool = False) -> None:
        """The one way out."""
        link = one.link
        if one.agreement is not None:
            one.agreement = None
            self._events.append(StreamsStopped(one, reason))
        self._step(one, "leave")
        self._forget(one, link, reason, migrated=migrated)

    def _forget(
        self, one: Listener, link: object | None, reason: str, *, migrated: bool = False
    ) -> None:
        self._by_id.pop(one.client_id, None)
        if one.link is not None:
            self._by_link.pop(one.link, None)
            one.link = None
        self._events.append(Departed(one, link, reason, migrated))
