"""Recording to WAV files: every channel a track, or the stereo mix (``--record``).

Written as it comes, a tenth of a second at a time; the header is brought up to date every second,
so that a recording survives a crash.  Above 4 GB a file becomes RF64 (EBU Tech 3306), below it is
plain WAV.  When the sample rate, the width or the channels change, a new part begins, since one
file holds only one of each: ``show.wav``, ``show-2.wav`` …
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile

_AUTO_DOWNGRADE: Final = 0x1210  # SFC_RF64_AUTO_DOWNGRADE: RF64 only if it has to be
_UPDATE_HEADER: Final = 0x1060  # SFC_UPDATE_HEADER_NOW
_WRITE_S: Final = 0.1
_HEADER_S: Final = 1.0
MAX_PARTS: Final = 999
MAX_PAD_S: Final = 3600.0

Block = npt.NDArray[Any]


class RecordingError(Exception):
    """The recording cannot be begun or continued; says which file and why."""


@dataclass(frozen=True, slots=True)
class TrackFormat:
    """What one file holds.

    :ivar subtype: ``PCM_16`` or ``PCM_24``, as soundfile calls them.
    """

    rate: int
    channels: tuple[int, ...] | None
    subtype: str

    @property
    def tracks(self) -> int:
        return 2 if self.channels is None else len(self.channels)

    @classmethod
    def multitrack(cls, codec: str, rate: int, channels: tuple[int, ...]) -> TrackFormat:
        """One track a channel; 16 bits for L16, 24 for everything else."""
        return cls(rate, channels, "PCM_16" if codec == "L16" else "PCM_24")

    @classmethod
    def stereo(cls, rate: int) -> TrackFormat:
        """The mix: left and right, 24 bits."""
        return cls(rate, None, "PCM_24")


class Recorder:
    """Writes blocks to a file, or several if the format changes.

    :param path: of the first part; an existing file is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[Path] = []
        self.samples = 0
        """Written so far, all parts together."""
        self._format: TrackFormat | None = None
        self._file: Any = None
        self._waiting: list[Block] = []
        self._held = 0
        self._since_header = 0

    def check(self) -> None:
        """See before the start whether the file can be made; leaves what is there as it is.

        :raises RecordingError: it cannot.
        """
        existed = self.path.exists()
        reason = _reason(self.path, None)
        if reason is not None:
            raise RecordingError(f"{self.path} cannot be written: {reason}")
        if not existed:
            self.path.unlink()

    def open(self, form: TrackFormat) -> None:
        """Be ready for blocks of this format; a change of format begins a new part.

        :raises RecordingError: the file cannot be made.
        """
        if form == self._format:
            return
        self.close()
        path = self._next_path()
        try:
            self._file = soundfile.SoundFile(
                path, "w", form.rate, form.tracks, form.subtype, format="RF64"
            )
        except (soundfile.SoundFileError, OSError) as error:
            raise RecordingError(f"{path} cannot be written: {_reason(path, error)}") from None
        self._command(_AUTO_DOWNGRADE, 1)
        self._format = form
        self.parts.append(path)

    def write(self, block: Block) -> None:
        """Append samples.

        :param block: shape ``(n, tracks)``; int32 (full scale 2**31, stored bit-exactly as far as
            the width goes) or float32 (full scale 1, what is over is clipped).  Kept for a moment.
        :raises RecordingError: the disk is full or gone; what was written before is kept.
        """
        assert self._format is not None
        if self._waiting and self._waiting[0].dtype != block.dtype:
            self._write_out()
        self._waiting.append(block)
        self._held += len(block)
        if self._held >= _WRITE_S * self._format.rate:
            self._write_out()

    def pad(self, seconds: float) -> None:
        """Append silence, so that the recording stays in time over a break.

        :raises RecordingError: as :meth:`write`.
        """
        if self._format is None:
            return
        left = round(min(max(seconds, 0.0), MAX_PAD_S) * self._format.rate)
        while left:
            block = np.zeros((min(left, self._format.rate), self._format.tracks), np.int32)
            self.write(block)
            left -= len(block)

    def close(self) -> None:
        """Write what is left and finish the header.

        :raises RecordingError: it could not all be written.
        """
        if self._file is None:
            return
        try:
            self._write_out()
        finally:
            file, self._file, self._format = self._file, None, None
            self._waiting, self._held = [], 0
            file.close()

    def _write_out(self) -> None:
        assert self._format is not None
        if not self._waiting:
            return
        block = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting, self._held = [], 0
        try:
            self._file.write(block)
        except (soundfile.SoundFileError, OSError) as error:
            raise RecordingError(f"{self.parts[-1]}: recording stopped: {error}") from None
        self.samples += len(block)
        self._since_header += len(block)
        if self._since_header >= _HEADER_S * self._format.rate:
            self._since_header = 0
            self._command(_UPDATE_HEADER, 0)
            self._file.flush()

    def _next_path(self) -> Path:
        number = len(self.parts) + 1
        if number > MAX_PARTS:
            raise RecordingError(f"{self.path}: the format changed {MAX_PARTS} times; giving up")
        return self.path if number == 1 else self.path.with_stem(f"{self.path.stem}-{number}")

    def _command(self, command: int, value: int) -> None:
        # soundfile has no public way to these two commands of libsndfile
        native: Any = soundfile
        native._snd.sf_command(self._file._file, command, native._ffi.NULL, value)


def _reason(path: Path, error: Exception | None) -> str | None:
    """Libsndfile says only "System error"; say what is really wrong, if something is."""
    if path.is_dir():
        return "it is a directory"
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    try:
        with path.open("ab"):
            pass
    except OSError as cause:
        return str(cause.strerror)
    return None if error is None else str(error)
