"""Recording to WAV files: every channel a track, or the stereo mix (``--record``).

Written as it comes, a tenth of a second at a time, on the thread for the disk; the header is
brought up to date every second, so that a recording survives a crash.  Above 4 GB a file becomes
RF64 (EBU Tech 3306), below it is plain WAV.  When the sample rate, the width or the channels
change, a new part begins, since one file holds only one of each: ``show.wav``, ``show-2.wav`` …
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from m32net.listener.disk import OnDisk, at_once

_AUTO_DOWNGRADE: Final = 0x1210  # SFC_RF64_AUTO_DOWNGRADE: RF64 only if it has to be
_UPDATE_HEADER: Final = 0x1060  # SFC_UPDATE_HEADER_NOW
_WRITE_S: Final = 0.1
_HEADER_S: Final = 1.0
MAX_PARTS: Final = 999
MAX_PAD_S: Final = 3600.0
MAX_QUEUED_S: Final = 20.0
"""Audio that may wait for the disk (123 MB of 32 channels); a disk slower than that fails."""
_SILENCE_S: Final = 0.5  # of silence and more only the length is kept in the queue

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


class WavParts:
    """The files of one recording.  Every call may wait for the disk.

    After an error nothing more is written, so that what is there has no hole.

    :param path: of the first part; an existing file is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[Path] = []
        self.samples = 0
        self._format: TrackFormat | None = None
        self._file: Any = None
        self._since_header = 0
        self._failed = False

    def open(self, form: TrackFormat) -> None:
        """Finish the last part and begin the next.

        :raises RecordingError: the file cannot be made.
        """
        self.close()
        if self._failed:
            return
        path = self._next_path()
        try:
            self._file = soundfile.SoundFile(
                path, "w", form.rate, form.tracks, form.subtype, format="RF64"
            )
        except (soundfile.SoundFileError, OSError) as error:
            self._failed = True
            raise RecordingError(f"{path} cannot be written: {_reason(path, error)}") from None
        self._command(_AUTO_DOWNGRADE, 1)
        self._format = form
        self.parts.append(path)

    def write(self, blocks: list[Block]) -> None:
        """Append blocks of one type of sample.

        :raises RecordingError: the disk is full or gone; what was written before is kept.
        """
        if self._failed or self._format is None:
            return
        block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        try:
            self._file.write(block)
            self.samples += len(block)
            self._since_header += len(block)
            if self._since_header >= _HEADER_S * self._format.rate:
                self._since_header = 0
                self._command(_UPDATE_HEADER, 0)
                self._file.flush()
        except (soundfile.SoundFileError, OSError) as error:
            self._failed = True
            raise RecordingError(f"{self.parts[-1]}: recording stopped: {error}") from None

    def pad(self, samples: int) -> None:
        """Append silence.

        :raises RecordingError: as :meth:`write`.
        """
        if self._failed or self._format is None:
            return
        second = np.zeros((min(samples, self._format.rate), self._format.tracks), np.int32)
        for start in range(0, samples, self._format.rate):
            self.write([second[: samples - start]])

    def close(self) -> None:
        """Finish the last part.

        :raises RecordingError: it could not all be written.
        """
        file, self._file, self._format = self._file, None, None
        if file is None:
            return
        try:
            file.close()
        except (soundfile.SoundFileError, OSError) as error:
            self._failed = True
            raise RecordingError(f"{self.parts[-1]}: recording stopped: {error}") from None

    def _next_path(self) -> Path:
        number = len(self.parts) + 1
        if number > MAX_PARTS:
            self._failed = True
            raise RecordingError(f"{self.path}: the format changed {MAX_PARTS} times; giving up")
        return self.path if number == 1 else self.path.with_stem(f"{self.path.stem}-{number}")

    def _command(self, command: int, value: int) -> None:
        # soundfile has no public way to these two commands of libsndfile
        native: Any = soundfile
        native._snd.sf_command(self._file._file, command, native._ffi.NULL, value)


class Recorder:
    """Has blocks written to a file, or several if the format changes.

    What goes wrong on the disk is raised by the next call; it is raised once, and the recording
    is over then: later calls do nothing.

    :param path: of the first part; an existing file is replaced.
    :param on_disk: does what waits for the disk.
    """

    def __init__(self, path: Path, on_disk: OnDisk = at_once) -> None:
        self.path = path
        self.queued_s = 0.0
        """Audio that waits for the disk; silence is not counted."""
        self._on_disk = on_disk
        self._files = WavParts(path)
        self._format: TrackFormat | None = None
        self._waiting: list[Block] = []
        self._held = 0
        self._error: RecordingError | None = None
        self._over = False

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files made so far."""
        return tuple(self._files.parts)

    @property
    def samples(self) -> int:
        """Written so far, all parts together."""
        return self._files.samples

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
        if self._over or form == self._format:
            return
        self._write_out()
        self._format = form
        self._queue(0.0, lambda: self._files.open(form))

    def write(self, block: Block) -> None:
        """Append samples.

        :param block: shape ``(n, tracks)``; int32 (full scale 2**31, stored bit-exactly as far as
            the width goes) or float32 (full scale 1, what is over is clipped).  Kept until it is
            on the disk; must not change.
        :raises RecordingError: the disk is full, gone, or too slow; what was written before is
            kept.
        """
        if self._over:
            return
        assert self._format is not None
        if len(block) >= _SILENCE_S * self._format.rate and not block.any():
            self._silence(len(block))
            return
        if self._waiting and self._waiting[0].dtype != block.dtype:
            self._write_out()
        self._waiting.append(block)
        self._held += len(block)
        if self._held >= _WRITE_S * self._format.rate:
            self._write_out()
        else:
            self._raise()

    def pad(self, seconds: float) -> None:
        """Append silence, so that the recording stays in time over a break.

        :raises RecordingError: as :meth:`write`.
        """
        if self._format is not None and not self._over:
            self._silence(round(min(max(seconds, 0.0), MAX_PAD_S) * self._format.rate))

    def close(self) -> Deferred[None]:
        """Write what is left and finish the header.

        :returns: fires when it is on the disk, or fails with :class:`RecordingError` if it could
            not all be written.
        """
        try:
            self._write_out()
        except RecordingError as error:
            self._error = error
        self._format = None
        closing = self._on_disk(self._files.close)
        return closing.addErrback(self._note).addCallback(lambda _: self._raise())

    def _silence(self, samples: int) -> None:
        self._write_out()
        self._queue(0.0, lambda: self._files.pad(samples))

    def _write_out(self) -> None:
        blocks, self._waiting = self._waiting, []
        held, self._held = self._held, 0
        if not blocks or self._over:
            return
        assert self._format is not None
        seconds = held / self._format.rate
        if self.queued_s + seconds > MAX_QUEUED_S + 1e-6:
            self._error = self._error or RecordingError(
                f"{self.path}: recording stopped: the disk is too slow, "
                f"{MAX_QUEUED_S:g} s of audio wait for it"
            )
            self._raise()
        self._queue(seconds, lambda: self._files.write(blocks))

    def _queue(self, seconds: float, job: Callable[[], None]) -> None:
        self.queued_s += seconds

        def done(result: object) -> None:
            self.queued_s -= seconds

        self._on_disk(job).addErrback(self._note).addCallback(done)
        self._raise()

    def _note(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, RecordingError):
            error = RecordingError(f"{self.path}: recording stopped: {failure.getErrorMessage()}")
        if not self._over:
            self._error = self._error or error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self._over = True
            raise error


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
