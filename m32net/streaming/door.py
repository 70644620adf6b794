"""Who may come in: the PIN, listeners another server has announced, and where newcomers are sent.

A pure core that :class:`~m32net.streaming.registry.Registry` asks before a connection becomes a
listener.  How many may come in is the registry's own.
"""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from m32net.interfaces import Arrival, RefusedError
from protocols.attempts import Allowance, Attempts

ATTEMPTS: Final = 5
"""Wrong PINs at once from one address; then one more every :data:`ATTEMPT_EVERY_S`."""
ATTEMPT_EVERY_S: Final = 12.0
ALL_ATTEMPTS: Final = Allowance(30, 3.0)
"""Of all addresses together: one phone may have many.  Four digits then hold for eight hours."""
MAX_ARRIVALS: Final = 10_000
"""Announced listeners kept at a time, as many as there may be listeners; the oldest go first."""
ARRIVAL_S: Final = 2 * 3600.0
"""How long an announced listener is waited for: longer than a migration can take."""


class Door:
    """What a newcomer must show.

    :param pin: the PIN in force; empty: none is asked for.
    :ivar elsewhere: host and port of the server newcomers are sent to; None: they may come in.
    :ivar secure_port: of that server, for those who come over TLS; None: it has none.
    :ivar wrong_pins: attempts refused since the start.
    """

    def __init__(self, pin: Callable[[], str] = lambda: "") -> None:
        self.elsewhere: tuple[str, int] | None = None
        self.secure_port: int | None = None
        self.wrong_pins = 0
        self._pin = pin
        self._tries = Attempts(Allowance(ATTEMPTS, ATTEMPT_EVERY_S), ALL_ATTEMPTS)
        self._arrivals: OrderedDict[str, tuple[Arrival, float]] = OrderedDict()

    @property
    def guarded(self) -> bool:
        """Whether a PIN is asked for."""
        return bool(self._pin())

    def address_for(self, link: object) -> tuple[str, int] | None:
        """Where the listener on this connection is sent, by the scheme it came with."""
        if self.elsewhere is None or self.secure_port is None:
            return self.elsewhere
        secure = getattr(link, "secure", False)
        return (self.elsewhere[0], self.secure_port) if secure else self.elsewhere

    # -- announced by another server -------------------------------------------------------

    def expect(self, arrivals: Iterable[Arrival], now: float) -> None:
        """These come soon, and keep their identity; announced again, the newer word counts."""
        for one in arrivals:
            self._arrivals.pop(one.client_id, None)
            self._arrivals[one.client_id] = (one, now + ARRIVAL_S)
        while len(self._arrivals) > MAX_ARRIVALS:
            self._arrivals.popitem(last=False)

    def expects(self, client_id: str, host: str, now: float) -> bool:
        """Whether a listener of this id and address is about to come."""
        one, until = self._arrivals.get(client_id, (None, 0.0))
        return one is not None and until > now and one.host == host

    def arrival(self, client_id: str | None, token: str | None, now: float) -> Arrival | None:
        """Who this is, if announced; it is expected no longer then."""
        if client_id is None or token is None:
            return None
        one, until = self._arrivals.get(client_id, (None, 0.0))
        if one is None or not hmac.compare_digest(one.token.encode(), token.encode()):
            return None
        del self._arrivals[client_id]
        return one if until > now else None

    # -- the PIN ---------------------------------------------------------------------------

    def try_pin(self, host: str, pin: str | None, now: float) -> RefusedError | None:
        """See whether a newcomer from ``host`` knows the PIN.

        :returns: None if it does, or need not; else what it is told.
        """
        wanted = self._pin()
        if not wanted:
            return None
        if pin is None:
            return RefusedError("wrong_pin", "this server asks for a PIN; the engineer has it", 403)
        wait = self._tries.take(host, now)
        if wait:
            self.wrong_pins += 1
            message = f"too many wrong PINs; try again in {math.ceil(wait)} s"
            return RefusedError("wrong_pin", message, 429)
        if hmac.compare_digest(wanted.encode(), pin.encode()):
            self._tries.was_right(host)
            return None
        self.wrong_pins += 1
        return RefusedError("wrong_pin", "that is not the PIN; the engineer has it", 403)
