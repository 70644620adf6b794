"""Opus: many mono encoders behind few calls into libopus.

A frame of 32 channels is 32 independent encoders, but calling libopus for each would take and
release the GIL 32 times, and every time the reactor thread is busy in Python the engine would wait
for it (measured with a busy reactor: 10 to 170 ms for one frame, against 1 ms for one call).  So
several mono encoders share one multistream encoder (RFC 7845 section 5.1.1, mapping family 255:
independent streams), its packet is hard CBR, and the mono packets are cut out of it by position.
No multistream packet leaves this module.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m32net.audio.crew import Job
from m32net.audio.frame import CAPTURE_RATE, Octets
from m32net.streaming.profile import Profile
from protocols.rtp.payload import frame_length_bytes

_RESTRICTED_LOWDELAY: Final = 2051
_SET_BITRATE, _SET_VBR, _SET_BANDWIDTH, _SET_COMPLEXITY = 4002, 4006, 4008, 4010
_SET_LSB_DEPTH: Final = 4036
_GET_ENCODER_STATE: Final = 5120
_BANDWIDTH: Final = {"superwideband": 1104, "fullband": 1105}
_UNUSED: Final = 255
"""In a channel mapping: this input channel goes into no stream."""
_FEWEST_TO_SHARE: Final = 4
"""Channels below which another thread costs more than it saves."""
DEFAULT_COMPLEXITY: Final = 5

APT_COMMAND: Final = "sudo apt-get install libopus0"

Floats = npt.NDArray[np.float32]


class EncoderUnavailable(Exception):  # noqa: N818 - it states a condition, and reads as one
    """Opus can't be used here: one line saying what is missing and how to get it."""


class EncoderError(Exception):
    """libopus refused something; a defect of ours or of the library.

    :ivar profile: whose encoder it was.
    """

    def __init__(self, profile: Profile, message: str) -> None:
        super().__init__(f"libopus: {message}")
        self.profile = profile


def opus_problem() -> str | None:
    """Why Opus can't be used, in one line; None if it can."""
    try:
        _library()
    except EncoderUnavailable as problem:
        return str(problem)
    return None


@lru_cache(maxsize=1)
def _library() -> Any:
    """The functions of libopus, with prototypes of our own (opuslib's stay as they are)."""
    try:
        import opuslib.api  # noqa: PLC0415 - absent libopus must not keep PCM from running
    except Exception as error:  # opuslib raises bare Exception when libopus is not there
        raise EncoderUnavailable(
            f"Opus needs the library libopus ({error}); install it with: {APT_COMMAND}"
        ) from error
    return _Library(opuslib.api.libopus)


class _Library:
    """Own function objects: ``cdll[name]`` makes a new one each time."""

    def __init__(self, cdll: Any) -> None:
        pointer, number, int32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int32
        self.create = cdll["opus_multistream_encoder_create"]
        self.create.restype = pointer
        self.create.argtypes = [int32, number, number, number, pointer, number, pointer]
        self.destroy = cdll["opus_multistream_encoder_destroy"]
        self.destroy.restype = None
        self.destroy.argtypes = [pointer]
        self.encode = cdll["opus_multistream_encode_float"]
        self.encode.restype = int32
        self.encode.argtypes = [pointer, pointer, number, pointer, int32]
        # Variadic, so without argtypes beyond the fixed ones.
        self.control = cdll["opus_multistream_encoder_ctl"]
        self.control.restype = number
        mono_size = cdll["opus_encoder_get_size"]
        mono_size.restype = number
        mono_size.argtypes = [number]
        self.mono_bytes: int = mono_size(1)


class _Chunk:
    """One multistream encoder for some channels; all calls on one thread at a time.

    Hard CBR of a multistream packet gives every stream the same rate, framing bytes not
    counted, and the last stream what remains.  A last stream of silence therefore takes up the
    difference, and each stream before it has exactly ``packet_bytes``.
    """

    def __init__(
        self, profile: Profile, columns: Sequence[int], input_columns: int, complexity: int
    ) -> None:
        self._profile = profile
        self.columns = tuple(columns)
        self._rows = np.array(self.columns, dtype=np.intp)
        self._samples = profile.capture_samples
        size = profile.packet_bytes
        alone = len(columns) == 1
        streams = [*columns] if alone else [*columns, input_columns - 1]
        self._total = size * len(streams)
        length = b"" if alone else frame_length_bytes(size - 1)
        self._length = np.frombuffer(length, np.uint8)
        stride = size + len(length)
        self._packet: Octets = np.zeros(self._total + 8, np.uint8)
        self._packet_address = self._packet.ctypes.data
        self._mono = self._packet[: stride * len(columns)].reshape(len(columns), stride)
        self._state = self._create(streams, input_columns)
        self._set(_SET_VBR, 0)
        self._set(_SET_COMPLEXITY, complexity)
        self._set(_SET_BANDWIDTH, _BANDWIDTH[profile.opus_bandwidth])
        self._set(_SET_LSB_DEPTH, 24)
        self._set(_SET_BITRATE, self._total * 8 * CAPTURE_RATE // self._samples)

    def _create(self, streams: Sequence[int], input_columns: int) -> int:
        mapping = np.full(input_columns, _UNUSED, np.uint8)
        mapping[list(streams)] = np.arange(len(streams))
        status = ctypes.c_int()
        state = _library().create(
            CAPTURE_RATE,
            input_columns,
            len(streams),
            0,
            mapping.ctypes.data,
            _RESTRICTED_LOWDELAY,
            ctypes.addressof(status),
        )
        if status.value or not state:
            raise EncoderError(
                self._profile, f"no encoder for {len(streams)} streams ({status.value})"
            )
        return int(state)

    def _set(self, request: int, value: int) -> None:
        control = _library().control
        status = control(ctypes.c_void_p(self._state), ctypes.c_int(request), ctypes.c_int(value))
        if status:
            raise EncoderError(self._profile, f"setting {request} to {value} failed ({status})")

    def encode(self, pcm_address: int, payload: Octets) -> None:
        """Encode one frame into the rows of ``payload`` that are this chunk's columns."""
        written = _library().encode(
            self._state, pcm_address, self._samples, self._packet_address, self._total
        )
        length = self._length
        extra = len(length)
        if written != self._total or (self._mono[:, 1 : 1 + extra] != length).any():
            raise EncoderError(self._profile, f"{written} bytes, {self._total} expected, or uneven")
        payload[self._rows, 0] = self._mono[:, 0]
        payload[self._rows, 1:] = self._mono[:, 1 + extra :]

    def mono_state(self, index: int) -> int:
        """Address of one channel's encoder state."""
        state = ctypes.c_void_p()
        status = _library().control(
            ctypes.c_void_p(self._state),
            ctypes.c_int(_GET_ENCODER_STATE),
            ctypes.c_int(index),
            ctypes.byref(state),
        )
        if status or state.value is None:
            raise EncoderError(self._profile, f"no state of stream {index} ({status})")
        return state.value

    def close(self) -> None:
        """Free the encoder; nothing may be called afterwards."""
        state, self._state = self._state, 0
        if state:
            _library().destroy(state)


@lru_cache(maxsize=256)
def _shares_evenly(profile: Profile, channels: int, complexity: int) -> bool:
    """Whether this libopus splits a multistream packet of so many channels as we count on.

    Tried, not assumed: how CBR bytes are divided is no part of libopus's interface.
    """
    if channels == 1:
        return True
    if profile.packet_bytes - channels < 2:
        return False
    noise = np.random.default_rng(1).standard_normal((profile.capture_samples, channels + 1))
    loud = (noise * 0.2).astype(np.float32)
    loud[:, -1] = 0.0
    payload = np.empty((channels, profile.packet_bytes), np.uint8)
    chunk = _Chunk(profile, range(channels), channels + 1, complexity)
    try:
        for pcm in (loud, loud * 0, loud):
            chunk.encode(pcm.ctypes.data, payload)
    except EncoderError:
        return False
    finally:
        chunk.close()
    return True


@lru_cache(maxsize=256)
def _silent_packet(profile: Profile, complexity: int) -> bytes:
    """What a fresh encoder makes of silence."""
    silence = np.zeros((profile.capture_samples, 1), np.float32)
    payload = np.empty((1, profile.packet_bytes), np.uint8)
    chunk = _Chunk(profile, (0,), 1, complexity)
    try:
        chunk.encode(silence.ctypes.data, payload)
    finally:
        chunk.close()
    return payload.tobytes()


class OpusBank:
    """The encoders of one profile: one mono encoder for each channel that somebody wants.

    Restricted low delay, hard CBR; every packet is ``profile.packet_bytes`` long.

    :param channels: of the source.
    :param parts: into how many jobs a frame is divided, for as many threads.
    :raises EncoderUnavailable: libopus is missing.
    :raises EncoderError: libopus refuses this profile.
    """

    def __init__(
        self, profile: Profile, channels: int, *, parts: int = 1, complexity: int | None = None
    ) -> None:
        _library()
        self.profile = profile
        self._channels = channels
        self._parts = parts
        self._complexity = DEFAULT_COMPLEXITY if complexity is None else complexity
        self._chunks: list[_Chunk] = []
        # A listener may ask for a channel a frame or two before the engine encodes it.
        silent = np.frombuffer(_silent_packet(profile, self._complexity), np.uint8)
        self._silence: Octets = np.tile(silent, (channels, 1))

    @property
    def wanted(self) -> tuple[int, ...]:
        """Ids of the channels that are encoded."""
        return tuple(sorted(column + 1 for chunk in self._chunks for column in chunk.columns))

    def set_wanted(self, wanted: frozenset[int]) -> None:
        """Encode these channels from the next frame on.

        A channel that was encoded before goes on as if nothing had happened; a new one starts
        with a fresh encoder.  Encoder states are flat memory that may be copied (opus.h).
        """
        columns = sorted(channel - 1 for channel in wanted if 1 <= channel <= self._channels)
        chunks = [
            _Chunk(self.profile, part, self._channels + 1, self._complexity)
            for part in self._divide(columns)
        ]
        states = {
            column: chunk.mono_state(index)
            for chunk in self._chunks
            for index, column in enumerate(chunk.columns)
        }
        for chunk in chunks:
            for index, column in enumerate(chunk.columns):
                if column in states:
                    ctypes.memmove(chunk.mono_state(index), states[column], _library().mono_bytes)
        self.close()
        self._chunks = chunks

    def _divide(self, columns: Sequence[int]) -> list[Sequence[int]]:
        """Even parts, as many as there are threads, none larger than libopus divides evenly."""
        if not columns:
            return []
        parts = min(self._parts, max(1, len(columns) // _FEWEST_TO_SHARE))
        size = -(-len(columns) // parts)
        while not _shares_evenly(self.profile, size, self._complexity):
            size = (size + 1) // 2
        parts = -(-len(columns) // size)
        size = -(-len(columns) // parts)
        if not _shares_evenly(self.profile, size, self._complexity):
            size = 1
        return [columns[at : at + size] for at in range(0, len(columns), size)]

    def begin(self, pcm: Floats) -> tuple[list[Job], Octets]:
        """One frame to encode.

        :param pcm: float32, full scale 1.0, C order, shape ``(n, channels + 1)``, the last column
            silent; must stay as it is until the jobs are done.
        :returns: jobs, to be done in any order on any threads, and the payload they fill: uint8,
            shape ``(channels, packet_bytes)``; channels that aren't wanted are packets of silence.
        """
        shape = (self.profile.capture_samples, self._channels + 1)
        if pcm.shape != shape or pcm.dtype != np.float32 or not pcm.flags.c_contiguous:
            raise ValueError(f"Opus wants contiguous float32 of shape {shape}, not {pcm.shape}")
        address = pcm.ctypes.data
        payload = self._silence.copy()

        def job(chunk: _Chunk) -> Job:
            return lambda: chunk.encode(address, payload)

        return [job(chunk) for chunk in self._chunks], payload

    def close(self) -> None:
        """Free the encoders."""
        for chunk in self._chunks:
            chunk.close()
        self._chunks = []
