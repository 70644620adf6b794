"""The ``file`` source: a multitrack WAV or FLAC, played in a loop as if it were the console.

Read from disk block by block, so an hour of 32 channels needs no memory; the end runs into the
beginning without a gap.  16- and 24-bit samples at 48 kHz are passed on bit for bit; other rates
are resampled (soxr) as they are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from zope.interface import implementer

from m32net.audio.clock import NS, AudioClock
from m32net.audio.events import DeviceLost, DeviceReturned, Emit
from m32net.audio.frame import CAPTURE_RATE, MAX_CHANNELS, Samples
from m32net.audio.sources.source import ISource, PacedSource, SourceError, SourceStatus

_RETRY_NS: Final = 5 * NS
_CHUNK_S: Final = 0.05
"""How much of a file at another rate is read and resampled at a time."""


@implementer(ISource)
class FileSource(PacedSource):
    """An audio file in a loop.  One that becomes unreadable is a lost device (STR-2).

    :param asked: channels to take, the first ones; fewer where the file has fewer.
    :raises SourceError: not there, not audio, or empty.
    """

    def __init__(self, path: Path, asked: int, clock: AudioClock) -> None:
        loop = _Loop(path, MAX_CHANNELS)
        loop.close()
        self._path = path
        super().__init__(f"file {path.name}", min(asked, loop.channels), asked, clock)
        self._loop: _Loop | None = None
        self._reason = ""
        self._lost_at = 0
        self._retry_at = 0

    def start(self, emit: Emit) -> None:
        self._emit = emit
        super().start(emit)

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def status(self) -> SourceStatus:
        status = super().status()
        if not self._reason:
            return status
        return SourceStatus("lost", self._reason, status.overruns, status.samples_lost)

    def _prepare(self) -> None:
        try:
            self._loop = _Loop(self._path, self.channels)
        except SourceError as error:
            self._lose(str(error))
            return
        if self._reason:
            self._reason = ""
            self._emit(DeviceReturned((self._clock.monotonic_ns() - self._lost_at) / NS))

    def _next(self, first: int, samples: int) -> tuple[Samples, Samples | None]:
        if self._loop is None and self._clock.monotonic_ns() >= self._retry_at:
            self._prepare()
        if self._loop is not None:
            try:
                return self._loop.read(samples), None
            except SourceError as error:
                self.stop()
                self._lose(str(error))
        return np.zeros((samples, self.channels), np.int32), None

    def _lose(self, reason: str) -> None:
        now = self._clock.monotonic_ns()
        self._retry_at = now + _RETRY_NS
        if not self._reason:
            self._lost_at = now
            self._emit(DeviceLost(reason))
        self._reason = reason


class _Loop:
    """An open file whose end is followed by its beginning."""

    def __init__(self, path: Path, channels: int) -> None:
        self._soundfile = _soundfile()
        name = self._name = ascii(str(path)) if "\n" in str(path) else str(path)
        try:
            self._file = self._soundfile.SoundFile(str(path))
        except (self._soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
            raise SourceError(f"can't play {name}: {_reason(path, error)}") from error
        self.channels = min(self._file.channels, channels)
        # libsndfile doesn't scale floats to integers by itself.
        self._is_float = not self._file.subtype.startswith(("PCM_", "ALAC_", "DPCM_", "DWVW_"))
        self._resampled: list[np.typing.NDArray[np.float32]] = []
        self._stream = self._resampling()
        if not self._file.frames:
            self.close()
            raise SourceError(f"can't play {name}: there is no audio in it")

    def close(self) -> None:
        self._file.close()

    def read(self, samples: int) -> Samples:
        """The next ``samples``, int32, shape ``(samples, channels)``.

        :raises SourceError: the file has become unreadable.
        """
        if self._stream is not None:
            return _to_int32(self._take_resampled(samples))
        if self._is_float:
            return _to_int32(self._raw(samples, "float64"))
        return np.ascontiguousarray(self._raw(samples, "int32"), dtype=np.int32)

    def _resampling(self) -> Any:
        if self._file.samplerate == CAPTURE_RATE:
            return None
        try:
            import soxr  # noqa: PLC0415 - only files at other rates need it
        except ImportError as error:
            raise SourceError(
                f"can't play {self._name}: it has {self._file.samplerate} Hz; convert it to"
                f" {CAPTURE_RATE} Hz, or install the Python package soxr"
            ) from error
        return soxr.ResampleStream(
            self._file.samplerate, CAPTURE_RATE, self.channels, dtype="float32", quality="VHQ"
        )

    def _take_resampled(self, samples: int) -> np.typing.NDArray[np.float32]:
        chunk = max(1, round(self._file.samplerate * _CHUNK_S))
        while sum(map(len, self._resampled)) < samples:
            block = np.ascontiguousarray(self._raw(chunk, "float32"))
            self._resampled.append(self._stream.resample_chunk(block))
        ready = np.concatenate(self._resampled)
        self._resampled = [ready[samples:]]
        return ready[:samples]

    def _raw(self, frames: int, dtype: str) -> np.typing.NDArray[Any]:
        """The next frames as they are in the file, over its end if need be."""
        parts = []
        missing = frames
        empty_handed = False
        while missing:
            try:
                part = self._file.read(missing, dtype=dtype, always_2d=True)
                if not len(part):
                    self._file.seek(0)
            except (self._soundfile.LibsndfileError, OSError, ValueError) as error:
                raise SourceError(f"can't go on playing {self._name}: {error}") from error
            if not len(part) and empty_handed:
                raise SourceError(f"can't go on playing {self._name}: it has become empty")
            empty_handed = not len(part)
            missing -= len(part)
            parts.append(part[:, : self.channels])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _to_int32(samples: np.typing.NDArray[Any]) -> Samples:
    """Full scale 1.0 to full scale 2**31, rounded to 24 bits, which floats carry exactly."""
    scaled = np.clip(np.rint(samples * 2.0**23), -(2**23), 2**23 - 1)
    return scaled.astype(np.int32) << 8


def _reason(path: Path, error: Exception) -> str:
    if "\0" in str(path) or not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a directory"
    return " ".join(str(getattr(error, "error_string", error)).split())


def _soundfile() -> Any:
    try:
        import soundfile  # noqa: PLC0415 - brings libsndfile, which only this source needs
    except (ImportError, OSError) as error:
        raise SourceError(
            f"audio files need the Python package soundfile ({error}); install it with:"
            " pip install soundfile"
        ) from error
    return soundfile
