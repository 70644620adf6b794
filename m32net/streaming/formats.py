"""Which formats can be encoded at a time, and how often they may change, so that nobody starves.

Pure rules; :class:`~m32net.streaming.registry.Registry` applies them to every new wish.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from m32net.interfaces import RefusedError
from m32net.streaming import cost
from m32net.streaming.listeners import Listener
from m32net.streaming.negotiation import Agreement, AudioOffer, agree
from m32net.streaming.profile import Profile
from protocols.addresses import address_key
from protocols.control.limits import TokenBucket
from protocols.control.messages import ClientConfig

MAX_PROFILES: Final = 8
"""Different formats at a time; each costs an encoding of every channel in it."""
ENCODERS_PER_S: Final = 32.0
ENCODERS_AT_ONCE: Final = 128
"""How many channels' encoders listeners of one address may have made: four times all 32 of another
format, or twenty musicians with six channels each that nobody else hears."""
MAX_ADDRESSES: Final = 4096
"""That are remembered; who was quiet for longest is forgotten."""


def check_formats(
    wish: Agreement, others: Sequence[Agreement], offer: AudioOffer, encoding_cores: float
) -> None:
    """What is offered to all is always possible; anything else only if it can be encoded too.

    The offered format counts in full even while nobody takes it, so that it never suffers.

    :param others: what the other listeners have.
    :raises RefusedError: it would be too much.
    """
    offered = agree(ClientConfig(), offer).profile
    if wish.profile == offered:
        return
    demand: dict[Profile, set[int]] = {offered: set(offer.channels)}
    for each in (*others, wish):
        demand.setdefault(each.profile, set()).update(each.channels)
    shared = any(each.profile == wish.profile for each in others)
    if len(demand) > MAX_PROFILES and not shared:
        reason = f"{MAX_PROFILES} different formats are in use already"
    elif cost.total(demand) > encoding_cores:
        reason = "the server can't encode that besides what others hear"
    else:
        return
    advice = "leave out compression, sample_rate, frame_ms and bitrate to share what is offered"
    raise RefusedError("too_many_formats", f"{reason}; {advice}")


def not_encoded(wish: Agreement, others: Iterable[Agreement]) -> int:
    """How many channels of a wish nobody has yet; the others cost next to nothing."""
    missing = set(wish.channels)
    for each in others:
        if not missing:
            break
        if each.profile == wish.profile:
            missing.difference_update(each.channels)
    return len(missing)


class Pace:
    """How often streams may change: by listener, and by address what must be encoded anew.

    Encoders for 32 channels take the engine milliseconds to make.  A crowd behind one address, or
    on this machine, that shares what is encoded is not held up, and nobody's first wish is, if it
    is for what is offered to all.
    """

    def __init__(self) -> None:
        self._encoders: OrderedDict[str, TokenBucket] = OrderedDict()

    def check(
        self,
        one: Listener,
        wish: Agreement,
        others: Sequence[Agreement],
        offer: AudioOffer,
        now: float,
    ) -> None:
        """Count a wish.

        :param wish: with its port, if that is known.
        :param others: what the other listeners have.
        :raises RefusedError: 429; there were too many.
        """
        current = one.agreement
        if current == wish:
            return
        if current is not None and not one.changes.take(1, now):
            raise RefusedError("too_fast", "the format was changed too often; wait a little", 429)
        new = not_encoded(wish, others if current is None else (current, *others))
        if not new:
            return
        if current is None and wish.profile == agree(ClientConfig(), offer).profile:
            return
        if not self._bucket(one.host, now).take(new, now):
            raise RefusedError(
                "too_fast",
                "listeners at this address changed formats too often; wait a little",
                429,
            )

    def remembered(self) -> int:
        """Addresses in the table, for judging its bound."""
        return len(self._encoders)

    def _bucket(self, host: str, now: float) -> TokenBucket:
        key = address_key(host)
        bucket = self._encoders.pop(key, None) or TokenBucket(ENCODERS_PER_S, ENCODERS_AT_ONCE, now)
        self._encoders[key] = bucket
        while len(self._encoders) > MAX_ADDRESSES:
            self._encoders.popitem(last=False)
        return bucket
