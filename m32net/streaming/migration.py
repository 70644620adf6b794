"""Moving all listeners to another server, as a core without I/O (CON-51).

Decides whom to tell what and when, who has moved, stayed or left, when it is over, and what a
newcomer is answered.  Looking at the new server, handing listeners over and sending messages is
for :mod:`m32net.streaming.moving`, which carries out the steps this hands back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from m32net.interfaces import MigrationStatus, Move, RefusedError

State = Literal[
    "idle",
    "checking",
    "checking again",
    "moving",
    "done",
    "incomplete",
    "failed",
    "cancelled",
]
Input = Literal["begin", "accept", "refuse", "all gone", "some stay", "cancel", "target lost"]

TABLE: Final[Mapping[State, Mapping[Input, State]]] = {
    "idle": {"begin": "checking"},
    "checking": {"accept": "moving", "refuse": "failed", "cancel": "cancelled"},
    "checking again": {"accept": "moving", "refuse": "failed", "cancel": "cancelled"},
    "moving": {
        "all gone": "done",
        "some stay": "incomplete",
        "cancel": "cancelled",
        "target lost": "failed",
    },
    "incomplete": {
        "all gone": "done",
        "begin": "checking again",
        "cancel": "cancelled",
        "target lost": "failed",
    },
    "done": {"begin": "checking again", "cancel": "cancelled", "target lost": "failed"},
    "failed": {"begin": "checking"},
    "cancelled": {"begin": "checking"},
}
"""State of a migration x input -> state.  What is not in the table is refused or ignored.

Newcomers are sent to the new server in ``moving``, ``incomplete`` and ``done``, and in ``checking
again`` to the one they were sent to before: a migration that follows one nobody has called off.
To people that is ``checking``, too.  ``incomplete``: some listeners were told, had their time, and
are still here; they keep their streams, and those who move later still count.  ``failed``: the new
server could not be used, or no longer answers; everybody who is here stays, and newcomers are
taken again.
"""

MoveState = Literal["waiting", "told", "moved", "stayed", "left"]
MoveInput = Literal["tell", "migrated", "gone", "overdue", "call off"]

MOVE_TABLE: Final[Mapping[MoveState, Mapping[MoveInput, MoveState]]] = {
    "waiting": {
        "tell": "told",
        "migrated": "moved",
        "gone": "left",
        "overdue": "stayed",
        "call off": "stayed",
    },
    "told": {
        "tell": "told",
        "migrated": "moved",
        "gone": "left",
        "overdue": "stayed",
        "call off": "stayed",
    },
    "stayed": {"tell": "told", "migrated": "moved", "gone": "left"},
    "moved": {},
    "left": {},
}
"""State of one listener's move x input -> state.

``waiting``: it can't be told yet, for its connection is gone and the grace period runs.
``moved``: it said bye with the reason ``migrated``.  ``left``: it went in any other way.
``stayed``: it is still here :data:`OVERDUE_S` after its time, or was told to stay.
"""

OPEN: Final = frozenset({"waiting", "told"})
AWAY: Final = frozenset({"checking again", "moving", "incomplete", "done"})
"""States in which newcomers are sent to the new server."""
CHECKING: Final = frozenset({"checking", "checking again"})
WATCHED: Final = AWAY - CHECKING
"""States in which the new server is looked at."""
OVERDUE_S: Final = 15.0
"""After its time to move, until a listener counts as one that stays."""
LOOK_EVERY_S: Final = 2.0
"""Between looks at the new server while newcomers are sent there."""
MISSES: Final = 3
"""Looks in a row that may fail before the new server counts as lost."""
MAX_AFTER_S: Final = 3600.0
MAX_EACH_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Present:
    """A listener that is here.

    :ivar reachable: whether it has a control connection now.
    """

    client_id: str
    name: str
    reachable: bool


@dataclass(frozen=True, slots=True)
class TellMove:
    """Send this listener ``serverMigration``; it is to move in ``after_s`` seconds."""

    client_id: str
    after_s: float


@dataclass(frozen=True, slots=True)
class TellStay:
    """Send this listener ``migrationCancelled``."""

    client_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class LookAtTarget:
    """See whether the new server still answers, and call :meth:`Migration.looked`."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Newcomers are sent to the new server from now on."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Newcomers are taken here again."""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Take back from the successor what it was given: this server's place."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The migration has come to this state; for the engineer's log."""

    state: State
    text: str


Step = TellMove | TellStay | LookAtTarget | Closed | Opened | TakeBack | Ended


@dataclass(slots=True)
class _Move:
    name: str
    due: float
    state: MoveState = "waiting"


class Migration:
    """One server's migration; another may begin when one is over.

    All times are seconds of one steady clock, given by the caller.  What a check finds is told with
    the number that :meth:`begin` gave it: of a check that is over nothing counts any more.

    :ivar given: a successor on this machine has this server's place, and is to keep it while
        newcomers are away.
    """

    def __init__(self) -> None:
        self.state: State = "idle"
        self._host = ""
        self._port = 0
        self._after_s = self._each_s = 0.0
        self._reason = ""
        self._moves: dict[str, _Move] = {}
        self._look_at: float | None = None
        self._misses = 0
        self._check = 0
        self._away: tuple[str, int] | None = None
        self.given = False
        self._steps: deque[Step] = deque()

    # -- reading ---------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """Take what is to be done since the last call."""
        while self._steps:
            yield self._steps.popleft()

    def status(self) -> MigrationStatus:
        moves = tuple(Move(key, one.name, one.state) for key, one in self._moves.items())
        state = "checking" if self.state in CHECKING else self.state
        return MigrationStatus(state, self._host, self._port, self._reason, moves)

    def target(self) -> tuple[str, int] | None:
        """Host and port of the server newcomers are sent to; None: they may stay."""
        return self._away

    def waits_for(self, check: int) -> bool:
        """Whether what this check finds still counts."""
        return self.state in CHECKING and check == self._check

    def next_timer(self) -> float | None:
        """When :meth:`handle_timer` has something to do next."""
        times = [one.due + OVERDUE_S for one in self._moves.values() if one.state in OPEN]
        if self._look_at is not None:
            times.append(self._look_at)
        return min(times, default=None)

    # -- the engineer ----------------------------------------------------------------------

    def begin(self, host: str, port: int, *, after_s: float, each_s: float) -> int:
        """Somebody wants everybody at ``host:port``.

        :returns: the number of the check that is to be made now.
        :raises RefusedError: 409 while one is under way, or while a successor has the place and
            this is not its address; 400 for times out of bounds.
        """
        if not (0 <= after_s <= MAX_AFTER_S and 0 <= each_s <= MAX_EACH_S):
            raise RefusedError(
                "invalid_value",
                f"after_s is 0 to {MAX_AFTER_S:g} and each_s 0 to {MAX_EACH_S:g}",
            )
        if self.given and self.state in WATCHED and (host, port) != self._away:
            raise RefusedError(
                "given_way",
                f"this server's successor has taken its place, at {self._host}:{self._port}; "
                "DELETE /api/migration calls that off",
                409,
            )
        if not self._take("begin"):
            raise RefusedError(
                "migrating",
                f"listeners are being moved to {self._host}:{self._port} already; "
                "DELETE /api/migration calls that off",
                409,
            )
        self._host, self._port = host, port
        self._after_s, self._each_s = after_s, each_s
        self._reason = ""
        self._look_at = None
        self._check += 1
        if self.state == "checking":
            self._moves = {}
        return self._check

    def cancel(self, reason: str = "called off") -> None:
        """Everybody who is still here stays.

        :raises RefusedError: 409 if there is nothing to call off.
        """
        if not self._take("cancel"):
            raise RefusedError("not_migrating", "no migration is under way", 409)
        self._call_off(reason)

    # -- the new server --------------------------------------------------------------------

    def gave_way(self, check: int) -> bool:
        """A successor has this server's place, as this check wanted.

        :returns: False if the check is over, and the place is to be taken back at once.
        """
        if not self.waits_for(check):
            return False
        self.given = True
        return True

    def accepted(self, check: int, people: Iterable[Present], now: float) -> None:
        """The new server is as it should be: tell everybody, one a little later than the other."""
        if not (self.waits_for(check) and self._take("accept")):
            return
        self._away = (self._host, self._port)
        self._moves = {}
        self._steps.append(Closed())
        self._misses = 0
        self._look_at = now + LOOK_EVERY_S
        for number, one in enumerate(people):
            due = now + self._after_s + number * self._each_s
            self._moves[one.client_id] = _Move(one.name, due)
            if one.reachable:
                self._tell(one.client_id, now)
        self._settle()

    def refused(self, check: int, reason: str) -> None:
        """The new server can't be used; who was told of another one before stays here."""
        if self.waits_for(check) and self._take("refuse"):
            self._call_off(reason)

    def looked(self, answers: bool, now: float) -> None:
        """The new server answers and is well, or not."""
        if self.state not in WATCHED:
            return
        self._look_at = now + LOOK_EVERY_S
        self._misses = 0 if answers else self._misses + 1
        if self._misses >= MISSES and self._take("target lost"):
            self._call_off(f"{self._host}:{self._port} no longer answers")

    # -- listeners -------------------------------------------------------------------------

    def came_back(self, client_id: str, now: float) -> None:
        """A listener of ours has a control connection again: it may not have heard."""
        one = self._moves.get(client_id)
        if self.state in WATCHED and one is not None and one.state in OPEN:
            self._tell(client_id, now)

    def departed(self, client_id: str, migrated: bool) -> None:
        """A listener is gone from here."""
        one = self._moves.get(client_id)
        if one is not None:
            self._step(one, "migrated" if migrated else "gone")
            self._settle()

    # -- time ------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        if self._look_at is not None and self._look_at <= now:
            self._look_at = None  # until looked()
            self._steps.append(LookAtTarget())
        for one in self._moves.values():
            if one.state in OPEN and one.due + OVERDUE_S <= now:
                self._step(one, "overdue")
        self._settle()

    # -- steps -----------------------------------------------------------------------------

    def _take(self, what: Input) -> bool:
        target = TABLE[self.state].get(what)
        if target is None:
            return False
        self.state = target
        return True

    @staticmethod
    def _step(one: _Move, what: MoveInput) -> bool:
        before = one.state
        one.state = MOVE_TABLE[before].get(what, before)
        return one.state != before

    def _tell(self, client_id: str, now: float) -> None:
        one = self._moves[client_id]
        self._step(one, "tell")
        self._steps.append(TellMove(client_id, max(0.0, one.due - now)))

    def _settle(self) -> None:
        """See whether it is over, or better than it was."""
        states = [one.state for one in self._moves.values()]
        if any(state in OPEN for state in states):
            return
        stayed = states.count("stayed")
        if stayed:
            if self._take("some stay"):
                self._reason = f"{stayed} of {len(states)} listeners stayed"
                self._steps.append(Ended(self.state, self._reason))
        elif self._take("all gone"):
            self._reason = ""
            left = states.count("left")
            text = f"{states.count('moved')} moved" + (f", {left} left" if left else "")
            self._steps.append(Ended(self.state, text))

    def _call_off(self, reason: str) -> None:
        self._reason = reason
        self._look_at = None
        if self._away is not None:
            self._away = None
            self._steps.append(Opened())
        if self.given:
            self.given = False
            self._steps.append(TakeBack())
        for client_id, one in self._moves.items():
            here = one.state in {"told", "stayed"}
            self._step(one, "call off")
            if here:
                self._steps.append(TellStay(client_id, reason))
        self._steps.append(Ended(self.state, reason))
