"""What the audio room tells its owner: devices lost and returned, samples that went missing.

Values only; they are made on the engine thread and handed over on the reactor thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from m32net.streaming.profile import Profile


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """The source stopped delivering; silence with running time stamps is streamed (STR-2).

    :ivar reason: one line for the engineer.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class DeviceReturned:
    """The source delivers again.

    :ivar after_s: seconds since it was lost.
    """

    after_s: float


@dataclass(frozen=True, slots=True)
class Overrun:
    """Captured samples were lost; time stamps ran on over them.

    :ivar samples: how many per channel, at the capture rate; 0 where the device only says that
        some were.
    :ivar where: ``device`` (PortAudio's flag), ``ring`` (the engine was late), ``count`` (fewer
        samples than the clock says), ``pace`` (a generated source was late).
    :ivar total: losses of all kinds since the source started.
    """

    samples: int
    where: str
    total: int


@dataclass(frozen=True, slots=True)
class FewerChannels:
    """The source has fewer channels than were asked for; the rest can't be sent."""

    asked: int
    available: int


@dataclass(frozen=True, slots=True)
class EncoderFailed:
    """A profile can't be encoded; its listeners get nothing until the demand changes."""

    profile: Profile
    reason: str


@dataclass(frozen=True, slots=True)
class EngineFault:
    """An unexpected error on the engine thread, which goes on; ``trace`` is for the log."""

    reason: str
    trace: str


AudioEvent = DeviceLost | DeviceReturned | Overrun | FewerChannels | EncoderFailed | EngineFault
Emit = Callable[[AudioEvent], None]
