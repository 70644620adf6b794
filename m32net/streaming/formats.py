"""Which formats can be encoded at a time, so that one listener's wish starves nobody.

A pure rule; :class:`~m32net.streaming.registry.Registry` applies it to every new wish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from m32net.interfaces import RefusedError
from m32net.streaming import cost
from m32net.streaming.negotiation import Agreement, AudioOffer, agree
from m32net.streaming.profile import Profile
from protocols.control.messages import ClientConfig

MAX_PROFILES: Final = 8
"""Different formats at a time; each costs an encoding of every channel in it."""


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
