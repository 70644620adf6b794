"""What flows between the audio room and its neighbours: captured frames and encoded frames.

Values only: no threads, no devices, no codecs.  A channel's ``id`` is 1-based everywhere in
m32net; its column in a frame is ``id - 1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from m32net.streaming.profile import Profile

CAPTURE_RATE = 48_000
"""Sample rate of every source, in Hz (STR-1); other rates are resampled from it per profile."""

MAX_CHANNELS = 64
"""Most channels a source may have (STR-1)."""

Samples = npt.NDArray[np.int32]
Octets = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """A number of consecutive samples of all captured channels.

    :ivar samples: int32, shape ``(n, channels)``, C order, full scale 2**31 (24-bit audio is
        left-justified, 16-bit audio too).
    :ivar first_sample: index of the first row since the source started; it runs on over gaps.
    :ivar capture_time_ns: wall-clock time (Unix, ns) at which the first row was captured.
    :ivar tones: what lossy codecs are given instead of ``samples``, same shape (the ``test``
        source only, STR-3); ``None`` everywhere else.
    """

    samples: Samples
    first_sample: int
    capture_time_ns: int
    tones: Samples | None = None

    def __len__(self) -> int:
        return int(self.samples.shape[0])


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One frame of one profile, encoded once for everybody who listens in that profile.

    :ivar media_time: time of the first sample in units of the profile's RTP clock since the
        source started; unbounded, the packetizer adds its offset and wraps it.
    :ivar duration: length in units of the RTP clock.
    :ivar capture_time_ns: wall-clock time (Unix, ns) of the first sample.
    :ivar complete_ns: ``time.monotonic_ns()`` when the last sample of the frame was there.
    :ivar payload: uint8.  PCM: shape ``(n, channels, width)``, big-endian samples (RFC 3551,
        RFC 3190).  Opus: shape ``(channels, packet_size)``, one hard-CBR packet a channel.
        Channels that nobody asked for are valid too: PCM as captured, Opus packets of silence,
        for a listener may be added a frame or two before the engine knows of its channels.
    """

    profile: Profile
    media_time: int
    duration: int
    capture_time_ns: int
    complete_ns: int
    payload: Octets
