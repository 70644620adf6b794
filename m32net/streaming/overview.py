"""What the streaming room shows of itself: each listener as the engineer sees it, and its health.

Reads only; :mod:`m32net.streaming.service` is asked and asks here.
"""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

from m32net.interfaces import ControlQuality, Health, ListenerStatus
from m32net.streaming.listeners import Listener
from m32net.streaming.registry import Registry
from m32net.streaming.transmission import Transmission

_CONTROL: Final[Any] = attrgetter(*(one.name for one in fields(ControlQuality)))


def status(one: Listener, transmission: Transmission, now: float) -> ListenerStatus:
    """A listener at a time of the steady clock, in seconds."""
    agreement = one.agreement
    totals = transmission.stream_totals(one.client_id)
    return ListenerStatus(
        client_id=one.client_id,
        name=one.name,
        host=one.host,
        udp_port=one.udp_port,
        state=one.state,
        codec=agreement.profile.codec if agreement else None,
        sample_rate=agreement.profile.sample_rate if agreement else None,
        frame_ms=agreement.profile.frame_ms if agreement else None,
        layout=agreement.layout if agreement else None,
        channels=agreement.channels if agreement else (),
        connected_s=now - one.since,
        packets_sent=totals.packets if totals else 0,
        octets_sent=totals.octets if totals else 0,
        packets_dropped=totals.dropped if totals else 0,
        quality=one.reception.latest,
        rating=one.reception.rating(),
        control=control_quality(one.link, now),
    )


def control_quality(link: object | None, now: float) -> ControlQuality | None:
    """How a control session fares (CON-13); None while there is none that is measured."""
    measure = getattr(link, "quality", None)
    if measure is None:
        return None
    return ControlQuality(*_CONTROL(measure(now)))


def health(registry: Registry, transmission: Transmission, formats: int) -> Health:
    """Whether audio can be sent, and to one listener more."""
    limit = registry.limits.max_listeners
    p50, p99 = transmission.send_times.quantiles_ms(0.5, 0.99)
    details = {
        "send_method": transmission.method.value if transmission.method else None,
        "listeners": len(registry),
        "max_listeners": limit,
        "refused": registry.refused,
        "formats": formats,
        "packets": transmission.totals["packets"],
        "dropped": transmission.totals["dropped"],
        "send_ms_p50": round(p50, 3),
        "send_ms_p99": round(p99, 3),
    }
    if not transmission.is_open:
        return Health("unhealthy", ("not sending: the sockets are closed",), details)
    if len(registry) < limit or not registry.refused:
        return Health("healthy", (), details)
    full = f"all {limit} places are taken; {registry.refused} were turned away so far"
    return Health("degraded", (full,), details)
