"""What encoding one frame of 32 channels costs, for every frame length, beside bare libopus.

``python -m benchmarks.encode_micro [--seconds S] [--channels N]`` prints microseconds of CPU per
frame, the share of one core that is in real time, and the time from having a frame to having it
encoded with one and with two threads.  `bare` is a loop of ``opus_encode_float`` calls with the
same settings in the same run, so the ratio says what everything around libopus costs.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator

import numpy as np
import opuslib.api

from m32net.audio.crew import Crew
from m32net.audio.encoder import FrameEncoder, open_encoder
from m32net.audio.frame import AudioFrame
from m32net.audio.sources.demo import render
from m32net.audio.window import FrameWindow
from m32net.streaming.profile import FRAME_US, Profile

RESTRICTED_LOWDELAY = 2051


def music(seconds: float, channels: int) -> np.ndarray:
    """The demo band (its channels again, where more are asked for), int32."""
    samples = round(seconds * 50) * 960
    short, long = render()
    band = np.concatenate((short[:, :samples], long[:, :samples]))
    rows = band[np.arange(channels) % len(band)]
    return np.ascontiguousarray(rows.T.astype(np.int32) << 16)


def frames(sound: np.ndarray, size: int) -> Iterator[AudioFrame]:
    for at in range(0, len(sound) - size + 1, size):
        yield AudioFrame(sound[at : at + size], at, 0)


def room(profile: Profile, sound: np.ndarray, workers: int) -> tuple[float, float, float]:
    """CPU of all threads, median time and 99th percentile of the audio room, us per frame."""
    channels = sound.shape[1]
    encoder: FrameEncoder = open_encoder(profile, channels, parts=workers)
    encoder.set_wanted(frozenset(range(1, channels + 1)))
    window = FrameWindow(channels)
    window.floats_wanted = encoder.needs_floats
    crew = Crew(workers)
    crew.start()
    took = []
    cpu = time.process_time_ns()
    for frame in frames(sound, profile.capture_samples):
        began = time.perf_counter_ns()
        window.put(frame)
        encoding = encoder.begin(window, 0)
        crew.run(encoding.jobs)
        encoding.finish()
        took.append(time.perf_counter_ns() - began)
    cpu = time.process_time_ns() - cpu
    crew.stop()
    encoder.close()
    middle, late = np.percentile(took, (50, 99)) / 1000
    return cpu / len(took) / 1000, float(middle), float(late)


def bare(profile: Profile, sound: np.ndarray) -> float:
    """CPU of one plain libopus call per channel, us per frame of all; conversion not counted."""
    library, pointer = opuslib.api.libopus, ctypes.c_void_p
    create, encode = library["opus_encoder_create"], library["opus_encode_float"]
    create.restype = pointer
    encode.argtypes = [pointer, pointer, ctypes.c_int, pointer, ctypes.c_int32]
    control = library["opus_encoder_ctl"]
    size, bytes_each = profile.capture_samples, profile.packet_bytes
    settings = ((4002, profile.opus_bitrate), (4006, 0), (4010, 5), (4008, 1105))
    encoders = []
    for _ in range(sound.shape[1]):
        encoder = create(48_000, 1, RESTRICTED_LOWDELAY, None)
        for request, value in settings:
            control(pointer(encoder), ctypes.c_int(request), ctypes.c_int(value))
        encoders.append(encoder)
    floats = np.ascontiguousarray(sound.T.astype(np.float32) / 2**31)
    out = np.empty(bytes_each, np.uint8)
    address, count = out.ctypes.data, len(sound) // size
    base, row = floats.ctypes.data, floats.strides[0]
    began = time.thread_time_ns()
    for number in range(count):
        for channel, encoder in enumerate(encoders):
            at = base + channel * row + number * size * 4
            encode(encoder, at, size, address, bytes_each)
    took = (time.thread_time_ns() - began) / count / 1000
    destroy = library["opus_encoder_destroy"]
    for encoder in encoders:
        destroy(pointer(encoder))
    return took


def line(
    name: str, profile: Profile, sound: np.ndarray, beside: Callable[[], float] | None
) -> None:
    cpu, alone, _ = room(profile, sound, 1)
    _, shared, late = room(profile, sound, 2)
    text = f"{name:14} {profile.frame_ms:5g} ms  {cpu:8.0f} us  {cpu / profile.frame_us:7.1%}"
    text += f"  {alone:8.0f} us  {shared:8.0f} us  {late:8.0f} us"
    if beside is not None:
        plain = beside()
        text += f"  {plain:8.0f} us  {cpu / plain:5.2f}x"
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="of music, for each line")
    parser.add_argument("--channels", type=int, default=32)
    options = parser.parse_args()
    sound = music(min(options.seconds, 19.0), options.channels)
    print(f"{options.channels} channels, {len(sound) / 48_000:g} s of music each")
    print(
        f"{'':14} {'frame':>8}  {'CPU/frame':>11}  {'of core':>7}  {'1 thread':>11}"
        f"  {'2 threads':>11}  {'p99 of 2':>11}  {'bare':>11}  ratio"
    )
    for frame_us in FRAME_US:
        profile = Profile("opus", 48_000, frame_us, 96_000)
        line("opus 96 kb/s", profile, sound, lambda p=profile: bare(p, sound))  # type: ignore[misc]
    for codec, rate in (("L16", 48_000), ("L24", 48_000), ("L24", 44_100), ("L16", 24_000)):
        for frame_us in FRAME_US:
            line(f"{codec} {rate}", Profile(codec, rate, frame_us), sound, None)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
