"""Moving all listeners to another server: what :mod:`m32net.streaming.migration` decides, done.

Looks at the new server, hands the listeners over, tells them, and hears from the streaming
service who has gone.  The successor on the same machine is the same to it but for the way it is
reached and who listens on the ports (docs/operations.md).  Owns one timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent

from m32net.asking import words
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
    TakeBack,
    TellMove,
    TellStay,
)
from m32net.streaming.rest import Rest
from m32net.streaming.service import StreamingService
from m32net.streaming.target import Facts, Introduction, OtherServer, find
from m32net.streaming.telling import Telling


class ISuccession(Protocol):
    """A process that waits to follow this one, on the same machine and ports."""

    @property
    def waiting(self) -> bool:
        """We are that process ourselves: another one is the server still."""
        ...

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
        self._target: OtherServer | None = None  # where newcomers are sent, and its TLS port
        self._secure_port: int | None = None
        self._successor: OtherServer | None = None  # who has our place, while the core says so
        self._place = DeferredLock()  # giving and taking back, one after the other
        self._beginning: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._telling = Telling(clock, streaming, self.core.target)
        streaming.on_welcome = self._welcomed
        streaming.on_departure = self._departed

    # -- IMigration ------------------------------------------------------------------------

    def begin(self, host: str, port: int, *, after_s: float, each_s: float) -> Deferred[None]:
        try:
            self._in_charge()
            check = self.core.begin(host, port, after_s=after_s, each_s=each_s)
        except RefusedError as error:
            return fail(error)
        self._beginning = Deferred.fromCoroutine(self._begin(check, host, port))
        return self._beginning

    def status(self) -> MigrationStatus:
        return self.core.status()

    def cancel(self) -> None:
        self._in_charge()
        self.core.cancel()
        self._carry_out()
        if self._beginning is not None:
            self._beginning.cancel()  # does nothing if it is over

    def _in_charge(self) -> None:
        """:raises RefusedError: the listeners are another server's, though ports may be ours."""
        if self._succession is not None and self._succession.waiting:
            raise RefusedError(
                "taking_over",
                "this server is about to take another one's place; `m32net migrate` on this "
                "machine talks to that one",
                409,
            )

    def moved_to(self, *, secure: bool = False) -> str | None:
        target = self.core.target()
        if target is None or self._target is None or self.core.given:
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

    async def _begin(self, check: int, host: str, port: int) -> None:
        try:
            if self.core.given and self._successor is not None:
                await self._announce_to(self._successor)  # whose address and ports are ours
                found = self._successor, self._secure_port
            else:
                found = await self._prepare(check, host, port)
        except CancelledError:
            self._refused(check, "whoever asked for it has gone")
            raise RefusedError("cancelled", "the migration was called off", 409) from None
        except RefusedError as error:
            self._refused(check, error.message)
            raise
        except Exception as error:
            self.log.failure("The migration could not begin")
            self._refused(check, words(error))
            raise RefusedError("failed", "this went wrong; the log says more", 503) from None
        if not self.core.waits_for(check):
            raise RefusedError("cancelled", "the migration was called off", 409)
        self._accepted(check, *found)

    async def _prepare(self, check: int, host: str, port: int) -> tuple[OtherServer, int | None]:
        """See that the server is fit, and tell it who comes.

        :returns: where newcomers are to be sent, and its port for TLS.
        """
        target, facts = await self._find(host, port)
        secure_port = facts.introduction.https_port if facts.introduction is not None else None
        successor = self._successor_for(facts, f"{host}:{port}")
        if successor is not None:
            await self._announce_to(successor)
            await _unharmed(Deferred.fromCoroutine(self._give_place(check, successor)), self.log)
            return successor, secure_port
        self._check(facts)
        if secure_port is not None:
            await self._hand_over(host, secure_port)
        return target, secure_port

    async def _find(self, host: str, port: int) -> tuple[OtherServer, Facts]:
        """:raises RefusedError: there is none, or it has not answered lately."""
        address = f"{host}:{port}"
        leave = self._rest.ask(address, self.seconds())
        try:
            found = await find(self.clock, host, port, self._agent, self._agent_for_peers)
        except CancelledError:
            self._rest.undecided(address, leave, self.seconds())
            raise
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

    async def _announce_to(self, successor: OtherServer) -> None:
        facts = await successor.look()
        self._check(facts)
        await successor.announce(self._arrivals())

    async def _give_place(self, check: int, successor: OtherServer) -> None:
        """Once begun it is brought to an end, though the check be over meanwhile."""
        assert self._succession is not None
        async with self._place:
            if not self.core.waits_for(check):
                return
            await self._succession.give_way(successor)
            if self.core.gave_way(check):
                self._successor = successor
            else:
                await self._succession.return_(successor)

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

    async def _hand_over(self, host: str, port: int) -> None:
        """Where that is possible; else listeners come as new ones, which costs them nothing."""
        arrivals = self._arrivals()
        if self._agent_for_peers is None or not arrivals:
            return
        peer = OtherServer(
            self.clock, self._agent_for_peers, f"https://{host}:{port}", f"{host}:{port}"
        )
        try:
            await peer.announce(arrivals)
        except CancelledError:
            raise
        except Exception as error:
            self.log.warn(
                "{host}:{port} takes the listeners as new ones, without their ids: {reason}",
                host=host,
                port=port,
                reason=words(error),
            )

    def _arrivals(self) -> list[Arrival]:
        here = self._streaming.registry
        return [Arrival(one.client_id, one.token, one.name, one.host) for one in here]

    def _refused(self, check: int, reason: str) -> None:
        self.core.refused(check, reason)
        self._carry_out()

    def _accepted(self, check: int, target: OtherServer, secure_port: int | None) -> None:
        self._target, self._secure_port = target, secure_port
        here = [
            Present(one.client_id, one.name, one.link is not None)
            for one in self._streaming.registry
        ]
        self.core.accepted(check, here, self.seconds())
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
        self._telling.go_on()
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
            case TellMove() | TellStay():
                self._telling.add(step)
            case LookAtTarget():
                looking = Deferred.fromCoroutine(self._look())
                looking.addErrback(lambda failure: self.log.failure("A look failed", failure))
            case Closed():
                door = self._streaming.registry.door
                door.elsewhere, door.secure_port = self.core.target(), self._secure_port
            case Opened():
                self._streaming.registry.door.elsewhere = None
                self._target = None
            case TakeBack():
                self._take_back()
            case Ended(state=state, text=text):
                self.log.info("The migration is {state}: {text}", state=state, text=text)
                self._note_event("migration_ended", f"{state}: {text}", {})

    async def _look(self) -> None:
        target = self._target
        answers = target is not None and await target.answers()
        if target is self._target:
            self.core.looked(answers, self.seconds())
            self._carry_out()

    def _take_back(self) -> None:
        """Take from the successor what it was given; it may be gone by now."""
        successor, self._successor = self._successor, None
        if successor is None or self._succession is None:
            return
        returning = self._place.run(Deferred.fromCoroutine, self._succession.return_(successor))
        returning.addErrback(self._not_returned)

    def _not_returned(self, failure: Failure) -> None:
        if not failure.check(CancelledError):  # type: ignore[no-untyped-call]  # as it stops
            self.log.failure("New connections are not taken again", failure)

    def stopService(self) -> Any:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._telling.stop()
        return super().stopService()  # type: ignore[no-untyped-call]


def _unharmed(work: Deferred[None], log: Logger) -> Deferred[None]:
    """Fires as ``work`` does; to cancel it leaves the work alone."""
    waiting: Deferred[None] = Deferred()

    def done(_: None) -> None:
        if not waiting.called:
            waiting.callback(None)

    def failed(failure: Failure) -> None:
        if waiting.called:
            log.failure("This went wrong when nobody waited for it any more", failure)
        else:
            waiting.errback(failure)

    work.addCallbacks(done, failed)
    return waiting
