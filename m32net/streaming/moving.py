"""Moving all listeners to another server: what :mod:`m32net.streaming.migration` decides, done.

Looks at the new server, hands the listeners over, tells them, and hears from the streaming
service who has gone.  The successor on the same machine is the same to it but for the way it is
reached and who listens on the ports (docs/operations.md).  Owns one timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.web.iweb import IAgent

from m32net.interfaces import Arrival, MigrationStatus, RefusedError
from m32net.log import RoomLog
from m32net.streaming.migration import (
    Closed,
    Ended,
    LookAtTarget,
    Migration,
    Opened,
    Present,
    Step,
    TellMove,
    TellStay,
)
from m32net.streaming.rest import Rest
from m32net.streaming.service import StreamingService
from m32net.streaming.target import Facts, Introduction, OtherServer, find
from protocols.control import messages

STAY: Final = "migrationCancelled"


class ISuccession(Protocol):
    """A process that waits to follow this one, on the same machine and ports."""

    def successor(self) -> OtherServer | None:
        """The process that waits for our place; None if there is none."""
        ...

    async def give_way(self, successor: OtherServer) -> None:
        """Let the successor have new connections; no settings are changed here any more.

        :raises RefusedError: it can't take them; everything is as before then.
        """
        ...

    async def return_(self, successor: OtherServer) -> None:
        """Take new connections and settings again."""
        ...

    async def listen(self, *, wanted: bool) -> None:
        """We are the successor: take new connections, or take none again.

        :raises RefusedError: we are not, or the ports can't be had.
        """
        ...


class MigrationService(Service):
    """Provides :class:`m32net.interfaces.IMigration`.

    :param clock: for the timer.
    :param introduce: what this server says of itself.
    :param agent: for plain HTTP; :param agent_for_peers: for HTTPS with certificates of both
        sides, None without TLS.
    :param succession: None where there can be no successor.
    :param expect_host: called with the address of a listener that has been announced.
    """

    name = "migration"
    log = RoomLog(namespace="m32net.streaming")

    def __init__(
        self,
        clock: Any,
        streaming: StreamingService,
        *,
        introduce: Callable[[], Introduction],
        agent: IAgent,
        agent_for_peers: IAgent | None,
        succession: ISuccession | None,
        note_event: Callable[[str, str, Mapping[str, Any]], object],
        expect_host: Callable[[str], object] = lambda host: None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.seconds = seconds
        self._expect_host = expect_host
        self.core = Migration()
        self._streaming = streaming
        self._introduce = introduce
        self._agent = agent
        self._agent_for_peers = agent_for_peers
        self._succession = succession
        self._note_event = note_event
        self._rest = Rest()
        self._target: OtherServer | None = None
        self._secure_port: int | None = None
        self._to_successor = False
        self._timer: IDelayedCall | None = None
        streaming.on_welcome = self._welcomed
        streaming.on_departure = self._departed

    # -- IMigration ------------------------------------------------------------------------

    def begin(self, host: str, port: int, *, after_s: float, each_s: float) -> Deferred[None]:
        return Deferred.fromCoroutine(self._begin(host, port, after_s, each_s))

    def status(self) -> MigrationStatus:
        return self.core.status()

    def cancel(self) -> None:
        self.core.cancel()
        self._carry_out()

    def moved_to(self, *, secure: bool = False) -> str | None:
        target = self.core.target()
        if target is None or self._target is None or self._to_successor:
            return None
        if secure and self._secure_port is not None:
            return f"https://{target[0]}:{self._secure_port}"
        return self._target.base

    def expect(self, arrivals: Sequence[Arrival]) -> None:
        self._streaming.registry.door.expect(arrivals, self.seconds())
        for host in {one.host for one in arrivals}:
            self._expect_host(host)
        self.log.info("{count} listeners are to come from another server", count=len(arrivals))

    def introduction(self) -> Introduction:
        return self._introduce()

    def listen(self, wanted: bool) -> Deferred[None]:
        async def listening() -> None:
            if self._succession is None:
                raise RefusedError("no_successor", "this server follows no other", 409)
            await self._succession.listen(wanted=wanted)

        return Deferred.fromCoroutine(listening())

    # -- beginning -------------------------------------------------------------------------

    async def _begin(self, host: str, port: int, after_s: float, each_s: float) -> None:
        self.core.begin(host, port, after_s=after_s, each_s=each_s)
        self._target, self._secure_port, self._to_successor = None, None, False
        try:
            target, facts = await self._find(host, port)
            if facts.introduction is not None:
                self._secure_port = facts.introduction.https_port
            successor = self._successor_for(facts, f"{host}:{port}")
            if successor is None:
                self._check(facts)
                await self._hand_over(host)
                self._target = target
            else:
                await self._make_way(successor)
        except RefusedError as error:
            self._refused(error.message)
            raise
        except Exception as error:
            self.log.failure("The migration could not begin")
            self._refused(str(error) or type(error).__name__)
            raise RefusedError("failed", "this went wrong; the log says more", 503) from None
        if self.core.state != "checking":  # called off meanwhile
            self._give_back()
            raise RefusedError("cancelled", "the migration was called off", 409)
        self._accepted()

    async def _find(self, host: str, port: int) -> tuple[OtherServer, Facts]:
        """:raises RefusedError: there is none, or it has not answered lately."""
        address = f"{host}:{port}"
        leave = self._rest.ask(address, self.seconds())
        try:
            found = await find(self.clock, host, port, self._agent, self._agent_for_peers)
        except Exception as error:
            self._rest.failed(address, leave, self.seconds(), error)
            raise
        self._rest.answered(address, leave)
        return found

    def _successor_for(self, facts: Facts, label: str) -> OtherServer | None:
        """The successor, if what answers at the address is this very process.

        :raises RefusedError: it is this process, but nobody waits for its place.
        """
        introduction = facts.introduction
        if introduction is None or introduction.instance != self._introduce().instance:
            return None
        successor = self._succession.successor() if self._succession is not None else None
        if successor is None:
            raise RefusedError(
                "same_server",
                f"{label} is this server itself; start its successor with --take-over first",
                409,
            )
        return successor

    async def _make_way(self, successor: OtherServer) -> None:
        assert self._succession is not None
        facts = await successor.look()
        self._check(facts)
        await successor.announce(self._arrivals())
        await self._succession.give_way(successor)
        self._target, self._to_successor = successor, True

    def _check(self, facts: Facts) -> None:
        """:raises RefusedError: the listeners would not have there what they have here."""
        registry = self._streaming.registry
        lacking = sorted(set(registry.offer.channels) - facts.channels)
        if lacking:
            named = ", ".join(map(str, lacking[:8])) + (", …" if len(lacking) > 8 else "")
            raise RefusedError("other_channels", f"the new server does not send {named}", 409)
        introduction = facts.introduction
        if introduction is not None and introduction.free_places < len(registry):
            raise RefusedError(
                "server_full",
                f"the new server has {introduction.free_places} free places for "
                f"{len(registry)} listeners",
                409,
            )

    async def _hand_over(self, host: str) -> None:
        """Where that is possible; else listeners come as new ones, which costs them nothing."""
        port, arrivals = self._secure_port, self._arrivals()
        if port is None or self._agent_for_peers is None or not arrivals:
            return
        peer = OtherServer(
            self.clock, self._agent_for_peers, f"https://{host}:{port}", f"{host}:{port}"
        )
        try:
            await peer.announce(arrivals)
        except Exception as error:
            self.log.warn(
                "{host}:{port} takes the listeners as new ones, without their ids: {reason}",
                host=host,
                port=port,
                reason=_words(error),
            )

    def _arrivals(self) -> list[Arrival]:
        here = self._streaming.registry
        return [Arrival(one.client_id, one.token, one.name, one.host) for one in here]

    def _refused(self, reason: str) -> None:
        self.core.refused(reason)
        self._carry_out()

    def _accepted(self) -> None:
        here = [
            Present(one.client_id, one.name, one.link is not None)
            for one in self._streaming.registry
        ]
        self.core.accepted(here, self.seconds())
        status = self.core.status()
        self.log.info(
            "{count} listeners move to {host}:{port}",
            count=len(here),
            host=status.host,
            port=status.port,
        )
        self._note_event(
            "migration_started", f"{len(here)} listeners move to {status.host}:{status.port}", {}
        )
        self._carry_out()

    # -- listeners -------------------------------------------------------------------------

    def _welcomed(self, client_id: str) -> None:
        self.core.came_back(client_id, self.seconds())
        self._carry_out()

    def _departed(self, client_id: str, migrated: bool) -> None:
        self.core.departed(client_id, migrated)
        self._carry_out()

    # -- carrying out ----------------------------------------------------------------------

    def _carry_out(self) -> None:
        for step in self.core.steps():
            self._do(step)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        at = self.core.next_timer()
        if at is not None:
            self._timer = self.clock.callLater(max(0.0, at - self.seconds()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.core.handle_timer(self.seconds())
        self._carry_out()

    def _do(self, step: Step) -> None:
        match step:
            case TellMove(client_id=client_id, after_s=after_s):
                self._tell_move(client_id, after_s)
            case TellStay(client_id=client_id, reason=reason):
                self._streaming.tell(client_id, STAY, reason, {})
            case LookAtTarget():
                Deferred.fromCoroutine(self._look())
            case Closed():
                door = self._streaming.registry.door
                door.elsewhere, door.secure_port = self.core.target(), self._secure_port
            case Opened():
                self._streaming.registry.door.elsewhere = None
                self._give_back()
            case Ended(state=state, text=text):
                self.log.info("The migration is {state}: {text}", state=state, text=text)
                self._note_event("migration_ended", f"{state}: {text}", {})

    def _tell_move(self, client_id: str, after_s: float) -> None:
        """In the listener's own scheme: who came by TLS is to go on by TLS."""
        status = self.core.status()
        registry = self._streaming.registry
        one = registry.get(client_id)
        host, port = registry.door.address_for(one.link if one else None) or (
            status.host,
            status.port,
        )
        event = messages.Migration(host, port, round(after_s, 3)).event(
            f"this server moves its listeners to {host}:{port}"
        )
        self._streaming.tell(client_id, event.type, event.reason, event.fields)

    async def _look(self) -> None:
        target = self._target
        answers = target is not None and await target.answers()
        if target is self._target:
            self.core.looked(answers, self.seconds())
            self._carry_out()

    def _give_back(self) -> None:
        """Take from a successor what it was given; it may be gone by now."""
        successor, given = self._target, self._to_successor
        self._target, self._to_successor = None, False
        if successor is None or not given or self._succession is None:
            return
        returning = Deferred.fromCoroutine(self._succession.return_(successor))
        returning.addErrback(
            lambda failure: self.log.failure("New connections are not taken again", failure)
        )

    def stopService(self) -> Any:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        return super().stopService()  # type: ignore[no-untyped-call]


def _words(error: Exception) -> str:
    return error.message if isinstance(error, RefusedError) else str(error) or type(error).__name__
