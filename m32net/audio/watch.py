"""The audio room's judgement of itself: events into log and history, state into health and figures.

Reads :class:`~m32net.audio.service.AudioStatus`; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from m32net.audio.events import (
    AudioEvent,
    DeviceLost,
    DeviceReturned,
    EncoderFailed,
    EngineFault,
    FewerChannels,
    Overrun,
)
from m32net.audio.service import AudioStatus
from m32net.interfaces import Health
from m32net.log import RoomLog

_KIND: Final[Mapping[type[AudioEvent], str]] = {
    DeviceLost: "device_lost",
    DeviceReturned: "device_returned",
    Overrun: "overrun",
    FewerChannels: "fewer_channels",
    EncoderFailed: "encoder_failed",
    EngineFault: "engine_fault",
}
"""Kinds of events, for programs, as the other rooms write theirs."""
TROUBLE_S: Final = 60.0
"""How long a fault shows on ``/health`` after it was reported."""


class AudioWatch:
    """Keeps an eye on the audio room (STR-2, STR-11).

    :param status: the room's state now.
    :param note_event: keeps what the engineer should see: ``(kind, text, fields)``.
    :param seconds: a steady clock.
    """

    log = RoomLog(namespace="m32net.audio")

    def __init__(
        self,
        status: Callable[[], AudioStatus],
        note_event: Callable[[str, str, Mapping[str, Any]], object],
        seconds: Callable[[], float],
    ) -> None:
        self._status = status
        self._note_event = note_event
        self._seconds = seconds
        self._trouble: tuple[float, str] | None = None

    def event(self, event: AudioEvent) -> None:
        """Say it in the log and keep it for the engineer."""
        kind = _KIND[type(event)]
        details = {name: str(value) for name, value in asdict(event).items() if name != "trace"}
        words = ", ".join(f"{name} {value}" for name, value in details.items())
        if isinstance(event, DeviceReturned | FewerChannels):
            self.log.info("{kind}: {words}", kind=kind, words=words, **details)
        else:
            self._trouble = (self._seconds(), f"{kind}: {words}")
            self.log.warn("{kind}: {words}", kind=kind, words=words, **details)
        self._note_event(kind, words, details)

    def health(self) -> Health:
        """Unhealthy without its device; degraded for a while after any other fault."""
        status = self._status()
        details = asdict(status)
        if status.state == "lost":
            reason = f"no audio from {status.source}: {status.reason}"
            return Health("unhealthy", (reason,), details)
        if self._trouble is not None and self._seconds() - self._trouble[0] < TROUBLE_S:
            return Health("degraded", (self._trouble[1],), details)
        return Health("healthy", (), details)

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``."""
        status = self._status()
        return {
            "source_lost": float(status.state == "lost"),
            "capture_overruns_total": status.overruns,
            "capture_samples_lost_total": status.samples_lost,
            "frames_encoded_total": status.frames_encoded,
            "frames_late_total": status.late,
            "frames_dropped_total": status.dropped,
            "levels_dropped_total": status.levels_dropped,
            "encode_seconds": status.encode_us / 1e6,
            "encoders_active": status.encoders_active,
        }
