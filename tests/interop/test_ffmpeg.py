"""STR-3, STR-4, STR-30, STR-42: ffmpeg receives what the server's SDP describes, on every channel.

The server's ``test`` source says on each channel which it is.  ffmpeg is given nothing but the
SDP of ``/sdp/<client_id>.sdp``, and all receivers of a test run at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protocols.control.messages import Stream
from protocols.rtp import sdp
from tests.support.measure import SAMPLE_BYTES, channel_numbers, pcm_file, tone
from tests.support.ports import free_pairs
from tests.support.processes import Child, ServerProcess, missing
from tests.support.scripted import ListenerCase, ScriptedListener

SECONDS = 1
RAW = {"L16": "s16le", "L24": "s24le", "opus": "s16le"}


class Recording:
    """ffmpeg with one raw file for each stream of a listener."""

    def __init__(self, one: ScriptedListener, directory: Path) -> None:
        assert one.stream is not None
        self.stream: Stream = one.stream
        self.files = [directory / f"{number}.raw" for number in range(len(one.stream.groups))]
        session = directory / "session.sdp"
        session.write_bytes(one.sdp.encode())
        outputs: list[str] = []
        for number, file in enumerate(self.files):
            form = RAW[self.stream.codec]
            outputs += ["-map", f"0:{number}", "-t", f"{SECONDS}", "-f", form, str(file)]
        quiet = ("-hide_banner", "-nostdin", "-loglevel", "warning")
        reading = ("-protocol_whitelist", "file,rtp,udp", "-i", str(session))
        self.child = Child(["ffmpeg", *quiet, *reading, *outputs])


class Ffmpeg(ListenerCase):
    skip = missing("ffmpeg")

    async def listener(self, server: ServerProcess, streams: int, **wanted: Any) -> Any:
        """A listener with a port of its own for each of its streams."""
        port = free_pairs(streams)
        return await self.join(server, ports="consecutive", udp_port=port, **wanted)

    def check_description(
        self, one: ScriptedListener, encoding: str, clock_rate: int, channels: int
    ) -> None:
        """All m= lines are of this kind, and there is one for each stream."""
        assert one.stream is not None
        kinds = [(m.encoding, m.clock_rate, m.channels) for m in sdp.parse(one.sdp).media]
        self.assertEqual(kinds, [(encoding, clock_rate, channels)] * len(one.stream.groups))

    async def record(self, listeners: Sequence[ScriptedListener]) -> list[Recording]:
        """What all of them receive in the same second or so."""
        recordings = [Recording(one, self.directory()) for one in listeners]
        for recording in recordings:
            self.addCleanup(recording.child.close)
        await self.ended([recording.child for recording in recordings])
        return recordings

    async def check_numbers(self, listeners: Sequence[ScriptedListener]) -> None:
        """Each sample of each channel is that channel's number, in all they receive."""
        for recording in await self.record(listeners):
            stream = recording.stream
            for group, file in zip(stream.groups, recording.files, strict=True):
                got = pcm_file(file, SAMPLE_BYTES[stream.codec], len(group.channels))
                # The second is one of time stamps: frames a busy machine was late with are gaps.
                self.assertGreater(len(got), stream.sample_rate * SECONDS / 2)
                wrong = np.flatnonzero((got != channel_numbers(stream, group)).any(axis=1))
                self.assertEqual(len(wrong), 0, f"{group} has {got[wrong[:1]].tolist()}")

    async def test_pcm_mono(self) -> None:
        """STR-3, STR-30: 32 m= lines of L16 (``none``) and of L24, each with its number."""
        server = self.serve()
        listeners = []
        for compression, encoding in (("none", "L16"), ("L24", "L24")):
            one = await self.listener(
                server, 32, channels=range(1, 33), compression=compression, layout="mono"
            )
            groups = [group.channels for group in one.stream.groups]
            self.assertEqual(groups, [(channel,) for channel in range(1, 33)])
            self.check_description(one, encoding, 48_000, 1)
            listeners.append(one)
        await self.check_numbers(listeners)

    async def test_pcm_bundles(self) -> None:
        """STR-3: three streams of as many channels as fit a packet in 2.5 ms, at 48 and 24 kHz."""
        server = self.serve()
        listeners = []
        for codec, rate, width in (
            ("L16", 48_000, 6),
            ("L24", 48_000, 4),
            ("L16", 24_000, 8),
            ("L24", 24_000, 8),
        ):
            one = await self.listener(
                server,
                3,
                channels=range(9, 9 + 3 * width),
                compression=codec,
                sample_rate=rate,
                layout="bundle",
                max_group=width,
                frame_ms=2.5,
            )
            self.assertEqual((len(one.stream.groups), one.stream.frame_ms), (3, 2.5))
            self.check_description(one, codec, rate, width)
            listeners.append(one)
        await self.check_numbers(listeners)

    async def test_pcm_in_parts(self) -> None:
        """STR-3, STR-4: 8 channels at 48 kHz and 5 ms are three packets of L16, four of L24."""
        server = self.serve()
        listeners = []
        for codec, parts in (("L16", 3), ("L24", 4)):
            one = await self.listener(
                server,
                4,
                channels=range(1, 33),
                compression=codec,
                layout="bundle",
                max_group=8,
                frame_ms=5,
            )
            self.assertEqual(len(one.stream.groups), 4)
            self.assertAlmostEqual(one.stream.frame_ms, 5 / parts)
            self.check_description(one, codec, 48_000, 8)
            listeners.append(one)
        await self.check_numbers(listeners)

    async def test_pcm_steps(self) -> None:
        """STR-42: at 44.1, 32 and 24 kHz the clock rate is that, and resampling keeps numbers."""
        server = self.serve()
        listeners = []
        for rate in (44_100, 32_000, 24_000):
            for codec in ("L16", "L24"):
                one = await self.listener(
                    server,
                    3,
                    channels=(1, 3, 32),
                    compression=codec,
                    sample_rate=rate,
                    layout="mono",
                )
                self.check_description(one, codec, rate, 1)
                listeners.append(one)
        await self.check_numbers(listeners)

    async def test_opus(self) -> None:
        """STR-3, STR-42: n x 100 Hz at -12 dBFS at every step and frame length; clock 48 kHz."""
        server = self.serve()
        listeners = []
        for rate, frame_ms in (
            (48_000, 5),
            (48_000, 2.5),
            (44_100, 20),
            (32_000, 10),
            (24_000, 20),
        ):
            one = await self.listener(
                server,
                4,
                channels=(1, 7, 20, 32),
                compression="opus",
                sample_rate=rate,
                frame_ms=frame_ms,
                layout="mono",
            )
            self.check_description(one, "opus", 48_000, 2)
            listeners.append(one)
        for recording in await self.record(listeners):
            stream = recording.stream
            for group, file in zip(stream.groups, recording.files, strict=True):
                got = pcm_file(file, 2, 2)
                self.assertGreater(len(got), 48_000 * SECONDS / 2)
                for side in got[9_600:].T:
                    heard = tone(side, 48_000, 2.0**15)
                    self.check_tone(heard, group.channels[0], f"{stream}")
