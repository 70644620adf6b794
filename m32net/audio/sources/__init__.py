"""Sources of audio, and how to name one: ``demo``, ``test``, ``file:PATH``, ``device[:NAME]``.

:func:`open_source` is the door; it checks everything that can be checked before the server starts,
and starts nothing itself, so it may be called before a fork.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from m32net.audio.clock import AudioClock, SystemClock
from m32net.audio.frame import MAX_CHANNELS
from m32net.audio.sources.demo import DemoSource
from m32net.audio.sources.device import DeviceSource
from m32net.audio.sources.file import FileSource
from m32net.audio.sources.portaudio import InputBackend, InputDevice, PortAudio, choose_device
from m32net.audio.sources.source import ISource, SourceError, SourceStatus
from m32net.audio.sources.tone import ToneSource

__all__ = [
    "SPELLINGS",
    "ISource",
    "InputDevice",
    "SourceError",
    "SourceStatus",
    "list_devices",
    "open_source",
]

SPELLINGS: Final = "demo, test, file:PATH, device or device:NAME"


def open_source(
    spec: str,
    channels: int = 32,
    *,
    clock: AudioClock | None = None,
    backend: InputBackend | None = None,
) -> ISource:
    """The source that ``spec`` names.

    :param spec: one of :data:`SPELLINGS`; NAME is a part of the device's name, or its number.
    :param channels: how many to capture, 1..64; a source that has fewer gives what it has, and
        says so when it is started (:class:`~m32net.audio.events.FewerChannels`).
    :raises SourceError: one line that says what is wrong and what to do.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise SourceError(f"{channels} channels can't be captured; choose 1 to {MAX_CHANNELS}")
    clock = clock or SystemClock()
    kind, colon, rest = spec.partition(":")
    if kind == "demo" and not colon:
        return DemoSource(channels, clock)
    if kind == "test" and not colon:
        return ToneSource(channels, clock)
    if kind == "file" and rest:
        return FileSource(_path(rest), channels, clock)
    if kind == "device" and (rest or not colon):
        return _open_device(rest or None, channels, clock, backend or PortAudio())
    raise SourceError(f"unknown source {spec!r}; choose one of: {SPELLINGS}")


def list_devices(backend: InputBackend | None = None) -> list[InputDevice]:
    """The inputs PortAudio has now.

    :raises SourceError: there is no PortAudio.
    """
    backend = backend or PortAudio()
    try:
        return backend.devices()
    finally:
        backend.release()


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # nobody of that name
        return Path(text)


def _open_device(
    wanted: str | None, channels: int, clock: AudioClock, backend: InputBackend
) -> ISource:
    device = choose_device(list_devices(backend), wanted)
    return DeviceSource(device, channels, backend, clock, wanted=wanted)
