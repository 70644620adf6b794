"""From payloads to samples: PCM as it is, Opus through libopus.

A whole group of Opus channels is one multistream decoder (RFC 7845 section 5.1.1, mapping family
255), so a packet is one call, and its samples come out interleaved as they are needed.  Which
frame is decoded when is decided by :mod:`m32net.listener.playout`.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from m32net.listener.depacketize import SAMPLE_WIDTH, GroupPlan, StreamPlan
from protocols.errors import RemoteProtocolError
from protocols.rtp.payload import wire_to_pcm

APT_COMMAND: Final = "sudo apt-get install libopus0"
_RESET_STATE: Final = 4028
_RATE: Final = 48_000

Payload = bytes | memoryview
Block = npt.NDArray[Any]


class OpusUnavailable(Exception):  # noqa: N818 - it states a condition, and reads as one
    """Opus can't be decoded here: one line saying what is missing and how to get it."""


class Decoder(Protocol):
    """Decodes one group of channels.

    :ivar dtype: of what comes out: int32 (full scale 2**31) or float32 (full scale 1).
    """

    dtype: npt.DTypeLike

    def decode(self, payload: Payload, samples: int) -> Block:
        """One payload as a block of shape ``(samples, channels)``.

        :raises RemoteProtocolError: it cannot be decoded.
        """
        ...

    def conceal(self, samples: int, following: Payload | None) -> Block | None:
        """What may have been in a lost payload; None if the decoder has no idea.

        :param following: the payload right after it, which may hold a copy of it.
        """
        ...

    def reset(self) -> None:
        """What comes next does not continue what was before."""
        ...


class PcmDecoder:
    """L16 and L24 to left-justified int32; bit-exact."""

    dtype: npt.DTypeLike = np.int32

    def __init__(self, codec: str, channels: int) -> None:
        self._width = SAMPLE_WIDTH[codec]
        self._channels = channels

    def decode(self, payload: Payload, samples: int) -> Block:
        return wire_to_pcm(payload, self._channels, self._width)

    def conceal(self, samples: int, following: Payload | None) -> None:
        return None

    def reset(self) -> None:
        pass


class OpusDecoder:
    """Opus to float32, with libopus's packet loss concealment and in-band FEC.

    :raises OpusUnavailable: libopus is missing.
    """

    dtype: npt.DTypeLike = np.float32

    def __init__(self, channels: int) -> None:
        self._library = _library()
        self._channels = channels
        status = ctypes.c_int()
        mapping = bytes(range(channels))
        self._state = self._library.create(
            _RATE, channels, channels, 0, mapping, ctypes.byref(status)
        )
        if status.value or not self._state:
            raise OpusUnavailable(
                f"libopus makes no decoder of {channels} streams ({status.value})"
            )

    def __del__(self) -> None:
        state, self._state = getattr(self, "_state", None), None
        if state:
            self._library.destroy(state)

    def decode(self, payload: Payload, samples: int) -> Block:
        return self._decode(bytes(payload), samples, fec=0)

    def conceal(self, samples: int, following: Payload | None) -> Block | None:
        """By FEC from the following payload, else by libopus's own concealment.

        libopus conceals multiples of 2.5 ms; for the rest of another length nothing is known.
        """
        if samples % 120:
            return None
        if following is not None:
            return self._decode(bytes(following), samples, fec=1)
        return self._decode(None, samples, fec=0)

    def reset(self) -> None:
        self._library.control(ctypes.c_void_p(self._state), ctypes.c_int(_RESET_STATE))

    def _decode(self, payload: bytes | None, samples: int, fec: int) -> Block:
        out = np.empty((samples, self._channels), np.float32)
        length = 0 if payload is None else len(payload)
        if payload is not None and not length:
            raise RemoteProtocolError("Opus: an empty payload")
        decoded = self._library.decode(self._state, payload, length, out.ctypes.data, samples, fec)
        if decoded != samples:
            raise RemoteProtocolError(f"Opus: libopus says {decoded} of {samples} samples")
        return out


def decoder_for(plan: StreamPlan, group: GroupPlan) -> Decoder:
    """The decoder of a group.

    :raises OpusUnavailable: it is Opus, and libopus is missing.
    """
    if plan.codec == "opus":
        return OpusDecoder(len(group.columns))
    return PcmDecoder(plan.codec, len(group.columns))


def as_float(block: Block) -> npt.NDArray[np.float32]:
    """A block as float32, full scale 1; a float32 one is given back itself."""
    if block.dtype == np.float32:
        return block
    return np.multiply(block, np.float32(2.0**-31), dtype=np.float32)


class _Library:
    """libopus's functions, as objects of our own: ``cdll[name]`` makes a new one each time."""

    def __init__(self, cdll: Any) -> None:
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        self.create = cdll["opus_multistream_decoder_create"]
        self.create.restype = pointer
        self.create.argtypes = [ctypes.c_int32, number, number, number, text, pointer]
        self.destroy = cdll["opus_multistream_decoder_destroy"]
        self.destroy.restype = None
        self.destroy.argtypes = [pointer]
        self.decode = cdll["opus_multistream_decode_float"]
        self.decode.restype = number
        self.decode.argtypes = [pointer, text, ctypes.c_int32, pointer, number, number]
        self.control = cdll["opus_multistream_decoder_ctl"]  # variadic: no argtypes
        self.control.restype = number


@lru_cache(maxsize=1)
def _library() -> _Library:
    try:
        import opuslib.api  # noqa: PLC0415 - absent libopus must not keep PCM from running
    except Exception as error:  # opuslib raises a bare Exception when libopus is not there
        raise OpusUnavailable(
            f"Opus needs the library libopus ({error}); install it with: {APT_COMMAND}"
        ) from error
    return _Library(opuslib.api.libopus)
