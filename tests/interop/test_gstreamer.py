"""STR-3, STR-4, STR-12: GStreamer receives what the server's SDP describes, on every channel.

``sdpdemux`` reads the SDP of ``/sdp/<client_id>.sdp`` and makes the sockets, the RTP session and
the jitter buffers from it; only the depayloader is chosen here.  All receivers of a test run at
the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protocols.control.messages import Stream
from tests.support.measure import SAMPLE_BYTES, channel_numbers, pcm_file, tone
from tests.support.ports import free_pairs
from tests.support.processes import Child, ServerProcess, missing
from tests.support.scripted import ListenerCase, ScriptedListener

PACKETS = 200
DEPAY = {"L16": "rtpL16depay", "L24": "rtpL24depay", "opus": "rtpopusdepay ! opusdec"}
PCM_ORDER = {8: (0, 1, 2, 3, 6, 7, 4, 5)}
"""Its PCM depayloaders take eight channels for AIFF-C's 7.1 and put them in GStreamer's order."""
OPUS_ORDER = (0, 2, 1, 7, 5, 6, 3, 4)
"""Its Opus decoder takes eight for 7.1 in Vorbis order: L C R Ls Rs Lb Rb LFE."""


class Pipeline:
    """gst-launch-1.0 with one raw file for each stream of a listener."""

    def __init__(self, one: ScriptedListener, directory: Path) -> None:
        assert one.stream is not None
        self.stream: Stream = one.stream
        self.files = [directory / f"{number}.raw" for number in range(len(one.stream.groups))]
        session = directory / "session.sdp"
        session.write_bytes(one.sdp.encode())
        chains = "".join(
            f" sdp.stream_{number} ! {DEPAY[self.stream.codec]}"
            f" ! identity eos-after={PACKETS} ! filesink location={file}"
            for number, file in enumerate(self.files)
        )
        words = f"gst-launch-1.0 -q filesrc location={session} ! sdpdemux name=sdp{chains}"
        self.child = Child(words.split())


class Gstreamer(ListenerCase):
    skip = missing("gst-launch-1.0")

    async def listener(self, server: ServerProcess, streams: int, **wanted: Any) -> Any:
        """A listener with a port of its own for each of its streams."""
        port = free_pairs(streams)
        wanted = {"max_group": 8, **wanted}
        return await self.join(server, ports="consecutive", udp_port=port, **wanted)

    async def record(self, listeners: Sequence[ScriptedListener]) -> list[Pipeline]:
        pipelines = [Pipeline(one, self.directory()) for one in listeners]
        for pipeline in pipelines:
            self.addCleanup(pipeline.child.close)
        await self.ended([pipeline.child for pipeline in pipelines])
        return pipelines

    async def check_numbers(self, listeners: Sequence[ScriptedListener]) -> None:
        """Each sample of each channel is that channel's number, in all they receive."""
        for pipeline in await self.record(listeners):
            stream = pipeline.stream
            for group, file in zip(stream.groups, pipeline.files, strict=True):
                width = len(group.channels)
                got = pcm_file(file, SAMPLE_BYTES[stream.codec], width, big_endian=True)
                frame = stream.sample_rate * stream.frame_ms / 1000
                self.assertGreater(len(got), (PACKETS - 2) * frame)
                expected = channel_numbers(stream, group)[list(PCM_ORDER.get(width, range(width)))]
                wrong = np.flatnonzero((got != expected).any(axis=1))
                self.assertEqual(len(wrong), 0, f"{group} has {got[wrong[:1]].tolist()}")

    async def test_pcm(self) -> None:
        """STR-3: L16 and L24, mono and in bundles of 4, 7 and (in GStreamer's order) 8."""
        server = self.serve()
        listeners = []
        for codec, rate, layout, width in (
            ("L16", 48_000, "mono", 1),
            ("L24", 48_000, "mono", 1),
            ("L24", 48_000, "bundle", 4),
            ("L16", 32_000, "bundle", 7),
            ("L16", 24_000, "bundle", 8),
            ("L24", 24_000, "bundle", 8),
        ):
            one = await self.listener(
                server,
                3,
                channels=range(33 - 3 * width, 33),
                compression=codec,
                sample_rate=rate,
                layout=layout,
                frame_ms=2.5,
                max_group=width,
            )
            self.assertEqual([len(group.channels) for group in one.stream.groups], [width] * 3)
            self.assertEqual(one.stream.frame_ms, 2.5)
            listeners.append(one)
        await self.check_numbers(listeners)

    async def test_pcm_in_parts(self) -> None:
        """STR-3, STR-4: 8 channels at 48 kHz and 5 ms, in GStreamer's order, L16 and L24."""
        server = self.serve()
        listeners = []
        for codec, parts in (("L16", 3), ("L24", 4)):
            one = await self.listener(
                server, 4, channels=range(1, 33), compression=codec, layout="bundle", frame_ms=5
            )
            self.assertEqual([len(group.channels) for group in one.stream.groups], [8] * 4)
            self.assertAlmostEqual(one.stream.frame_ms, 5 / parts)
            listeners.append(one)
        await self.check_numbers(listeners)

    async def test_opus(self) -> None:
        """STR-3: mono streams as OPUS, bundles of eight as MULTIOPUS; both n x 100 Hz, -12 dBFS."""
        server = self.serve()
        mono = await self.listener(server, 3, channels=(1, 12, 32), layout="mono")
        bundle = await self.listener(server, 2, channels=range(17, 33), layout="bundle")
        self.assertEqual([len(group.channels) for group in bundle.stream.groups], [8, 8])
        for pipeline in await self.record([mono, bundle]):
            for group, file in zip(pipeline.stream.groups, pipeline.files, strict=True):
                width = len(group.channels)
                got = pcm_file(file, 2, width)
                self.assertGreater(len(got), (PACKETS - 2) * 240)
                order = OPUS_ORDER if width == 8 else (0,)
                for place, samples in zip(order, got[9_600:].T, strict=True):
                    heard = tone(samples, 48_000, 2.0**15)
                    self.check_tone(heard, group.channels[place], f"{group}")

    async def test_its_reports_are_understood(self) -> None:
        """STR-12: receiver reports of GStreamer's RTP session are the listener's quality."""
        server = self.serve()
        token = server.login()
        one = await self.listener(server, 1, channels=(7,), compression="L16", layout="mono")
        port = one.stream.udp_port
        caps = "application/x-rtp,media=audio,clock-rate=48000,encoding-name=L16,channels=1"
        session = (
            f"gst-launch-1.0 -q rtpbin name=rtp udpsrc port={port} caps={caps},payload=98"
            " ! rtp.recv_rtp_sink_0 rtp. ! rtpL16depay ! fakesink"
            f" udpsrc port={port + 1} ! rtp.recv_rtcp_sink_0 rtp.send_rtcp_src_0"
            f" ! udpsink host={server.host} port={server.rtp_port + 1} sync=false async=false"
        )
        child = self.start(*session.split())

        def reported() -> Any:
            self.assertTrue(child.running(), child.text())
            _, answer = server.call("GET", "/api/listeners", token=token)
            return answer["listeners"][0]["quality"]

        quality = await self.until(reported, "a report arrives")
        self.assertEqual(quality["source"], "rtcp")
        self.assertLess(quality["loss"], 0.05)
        self.assertLess(quality["jitter_ms"], 20)
        self.assertEqual(server.get("/metrics").count("m32net_foreign_reports_total 0.0"), 1)
