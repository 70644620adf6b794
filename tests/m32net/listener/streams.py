"""Streams for the listener's tests: what a server would announce and send, without a server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import opuslib

from protocols.control.messages import Stream, StreamGroup
from protocols.rtp.payload import (
    PT_L16,
    PT_L24,
    PT_MULTIOPUS,
    PT_OPUS,
    multiopus_bytes,
    multiopus_join,
    pcm_to_wire,
)

PACKET_BYTES = 60
WIDTH = {"L16": 2, "L24": 3}


def stream(
    codec: str = "L24",
    groups: Sequence[Sequence[int]] = ((1, 2, 3), (4, 5)),
    *,
    rate: int = 48_000,
    frame_ms: float = 5.0,
    layout: str = "bundle",
    port: int = 5004,
    rtp_port: int = 5004,
    first_ssrc: int = 1000,
) -> Stream:
    opus = PT_MULTIOPUS if layout == "bundle" else PT_OPUS
    payload_type = {"L16": PT_L16, "L24": PT_L24, "opus": opus}[codec]
    return Stream(
        client_id="me",
        codec=codec,
        sample_rate=rate,
        clock_rate=48_000 if codec == "opus" else rate,
        frame_ms=frame_ms,
        layout=layout,
        rtp_port=rtp_port,
        udp_port=port,
        sdp="/sdp/me.sdp",
        groups=tuple(
            StreamGroup(first_ssrc + index, payload_type, port, tuple(group))
            for index, group in enumerate(groups)
        ),
    )


def noise(samples: int, channels: int, seed: int = 1) -> np.ndarray:
    """Random left-justified int32 of 24 significant bits."""
    random = np.random.default_rng(seed)
    return random.integers(-(2**23), 2**23, (samples, channels), dtype=np.int32) << 8


def pcm_payloads(signal: np.ndarray, codec: str, frame: int) -> list[bytes]:
    """One payload a frame, all columns of ``signal`` interleaved."""
    return [
        pcm_to_wire(np.ascontiguousarray(signal[at : at + frame]), WIDTH[codec]).tobytes()
        for at in range(0, len(signal) - frame + 1, frame)
    ]


def opus_payloads(signal: np.ndarray, frame: int = 240) -> list[bytes]:
    """One MULTIOPUS payload a frame, of float32 columns; one column gives plain Opus."""
    encoders = []
    for _ in range(signal.shape[1]):
        encoder = opuslib.Encoder(48_000, 1, "restricted_lowdelay")
        encoder.vbr = 0
        encoder.bitrate = PACKET_BYTES * 8 * 48_000 // frame
        encoders.append(encoder)
    payloads = []
    for at in range(0, len(signal) - frame + 1, frame):
        rows = np.array(
            [
                np.frombuffer(
                    encoder.encode_float(
                        np.ascontiguousarray(signal[at : at + frame, column], np.float32).tobytes(),
                        frame,
                    ),
                    np.uint8,
                )
                for column, encoder in enumerate(encoders)
            ]
        )
        out = np.zeros(multiopus_bytes(rows.shape[0], rows.shape[1]), np.uint8)
        payloads.append(bytes(out[: multiopus_join(rows, out)]))
    return payloads


def tones(samples: int, channels: int, level: float = 0.25) -> np.ndarray:
    """Column n is a sine of (n + 1) x 100 Hz, float32."""
    time = np.arange(samples) / 48_000
    return np.stack(
        [level * np.sin(2 * np.pi * 100 * (n + 1) * time) for n in range(channels)], axis=1
    ).astype(np.float32)
