"""Figures of each single listener, as lines of Prometheus' text format.

Written directly instead of through ``prometheus_client``: with a thousand listeners a scrape has
twenty thousand lines, and while they are written no audio is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from m32net.interfaces import ListenerStatus
from m32net.ops.catalogue import PREFIX

Reading = Callable[[ListenerStatus], float | None]


def _quality(field: str, scale: float = 1.0) -> Reading:
    """Reads a field of the listener's last quality report, if it has one."""

    def read(one: ListenerStatus) -> float | None:
        value = getattr(one.quality, field, None)
        return None if value is None else value * scale

    return read


def _control(field: str, scale: float = 1.0) -> Reading:
    """Reads a field of the quality of its control session (CON-13), if that is known."""

    def read(one: ListenerStatus) -> float | None:
        value = getattr(one.control, field, None)
        return None if value is None else value * scale

    return read


FAMILIES: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("connected_seconds", "Time since it connected.", lambda one: one.connected_s),
    ("channels", "Channels it is sent.", lambda one: len(one.channels)),
    ("loss_ratio", "Packets lost, 0 to 1, in its last report.", _quality("loss")),
    ("jitter_seconds", "RFC 3550 interarrival jitter.", _quality("jitter_ms", 0.001)),
    ("latency_seconds", "One way, server to listener.", _quality("latency_ms", 0.001)),
    ("control_rtt_seconds", "Control: median of 100 pings.", _control("rtt_ms", 0.001)),
    ("control_rtt_last_seconds", "Control: newest ping.", _control("rtt_last_ms", 0.001)),
    ("control_loss_ratio", "Control: pings not answered in time, 0 to 1.", _control("loss")),
    ("control_idle_seconds", "Control: since anything was heard.", _control("idle_s")),
    ("control_queued_messages", "Control: messages that wait to be sent.", _control("queued")),
    ("packets_sent_total", "RTP packets sent.", lambda one: one.packets_sent),
    ("octets_sent_total", "RTP payload sent, in bytes.", lambda one: one.octets_sent),
    (
        "packets_dropped_total",
        "RTP packets the kernel did not take.",
        lambda one: one.packets_dropped,
    ),
    (
        "control_messages_received_total",
        "Control messages received.",
        _control("messages_received"),
    ),
    ("control_messages_sent_total", "Control messages sent.", _control("messages_sent")),
    (
        "control_bytes_received_total",
        "Control messages received, in bytes.",
        _control("bytes_received"),
    ),
    ("control_bytes_sent_total", "Control messages sent, in bytes.", _control("bytes_sent")),
    (
        "control_messages_dropped_total",
        "Control messages it was too slow for.",
        _control("dropped"),
    ),
    (
        "control_messages_expired_total",
        "Control messages that waited too long.",
        _control("expired"),
    ),
)
"""Name, HELP text and where the value is; a name that ends in ``_total`` is a counter."""


def exposition(everybody: Sequence[ListenerStatus]) -> str:
    """All families with a sample for each listener of whom the figure is known."""
    labels = [_labels(one) for one in everybody]
    lines: list[str] = []
    for name, text, read in FAMILIES:
        full = f"{PREFIX}listener_{name}"
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += (f"# HELP {full} {text}", f"# TYPE {full} {kind}")
        for whose, one in zip(labels, everybody, strict=True):
            value = read(one)
            if value is not None and math.isfinite(value):
                lines.append(f"{full}{whose} {value!r}")
    return "\n".join(lines) + "\n"


def _labels(one: ListenerStatus) -> str:
    client_id, name, codec = _escaped(one.client_id), _escaped(one.name), one.codec or ""
    return f'{{client_id="{client_id}",name="{name}",codec="{codec}"}}'


def _escaped(text: str) -> str:
    """A label's value; peers choose their names."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
