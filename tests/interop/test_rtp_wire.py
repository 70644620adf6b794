"""STR-4, STR-52: what the fan-out sends, read by tshark, ffmpeg and GStreamer.

The fan-out is paced by the wall clock here and sends over loopback; the peers read its SDP, or
the caps that stand for it.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from m32net.audio.frame import EncodedFrame
from m32net.streaming.fanout import Fanout
from m32net.streaming.profile import MAX_MEDIA_PAYLOAD, Profile
from protocols.datagram import open_udp, probe_send_method
from protocols.rtp import sdp
from protocols.rtp.extension import EVENT_FLAGS_URI, NTP64_URI
from protocols.rtp.packetizer import Group, StreamSpec, payload_type_of, plan_groups
from protocols.rtp.payload import pcm_to_wire
from tests.support.ports import free_pairs
from tests.support.processes import Child, missing, wait_for

GOLDEN = Path(__file__).parents[1] / "golden" / "rtp"
L16 = Profile("L16", 48_000, 5_000)
OPUS = Profile("opus", 48_000, 5_000, 96_000)


def pcap(datagrams: list[bytes], port: int) -> bytes:
    """A capture file of UDP datagrams (LINKTYPE_RAW: IPv4 without a link layer)."""
    packets = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)]
    for data in datagrams:
        udp = struct.pack("!HHHH", 5004, port, 8 + len(data), 0) + data
        ip = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0xB8,
            20 + len(udp),
            0,
            0,
            64,
            17,
            0,
            b"\x7f\0\0\1",
            b"\x7f\0\0\1",
        )
        packets.append(struct.pack("<IIII", 1, 0, 20 + len(udp), 20 + len(udp)) + ip + udp)
    return b"".join(packets)


class WiresharkTests(SynchronousTestCase):
    skip = missing("tshark")

    def test_golden_packets(self) -> None:
        """tshark sees in the golden packets what their JSON twins say."""
        names = ["packet-time-extension", "packet-l24-two-samples"]
        datagrams = [(GOLDEN / f"{name}.bin").read_bytes() for name in names]
        with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
            file.write(pcap(datagrams, 5004))
            file.flush()
            fields = ["rtp.p_type", "rtp.seq", "rtp.timestamp", "rtp.ssrc", "rtp.ext.profile"]
            fields += ["rtp.ext.rfc5285.id", "rtp.ext.rfc5285.data", "rtp.payload"]
            command = ["tshark", "-r", file.name, "-d", "udp.port==5004,rtp", "-T", "fields"]
            for field in fields:
                command += ["-e", field]
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False
            )
        lines = [line.split("\t") for line in result.stdout.splitlines()]
        elements = ["0xbede", "1,2", "edc7e40080000000,01"]
        first = ["97", "1", "0", "0x00000001", *elements, "f802aabbf8ccdd"]
        second = ["96", "4660", "240", "0x12345678", "", "", "", "000100000200"]
        self.assertEqual(lines, [first, second], result.stderr)


class PeerCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.sock = open_udp("127.0.0.1", 0)
        self.addCleanup(self.sock.close)
        self.fanout = Fanout(self.sock, probe_send_method(self.sock), timestamp_offset=0xFFFF_F000)

    def spec(self, profile: Profile, channels: int, layout: str) -> StreamSpec:
        groups = plan_groups(
            range(1, channels + 1),
            profile.channel_bytes,
            layout,  # type: ignore[arg-type]
            None,
            MAX_MEDIA_PAYLOAD,
            opus=not profile.is_pcm,
        )
        port = free_pairs(len(groups))
        kind = payload_type_of(profile.codec, layout)  # type: ignore[arg-type]
        return StreamSpec(
            "127.0.0.1",
            tuple(Group(7 + n, kind, port + 2 * n, g, 65_530) for n, g in enumerate(groups)),
        )

    def peer(self, command: list[str]) -> Child:
        child = Child(command)
        self.addCleanup(child.close)
        return child

    def play(self, frame: Callable[[int], EncodedFrame], until: Callable[[], bool]) -> None:
        """Send a frame every 5 ms until the peer has enough, 20 s at most."""
        start = time.monotonic()
        number = 0

        def step() -> bool:
            nonlocal number
            while number * 0.005 < time.monotonic() - start:
                self.fanout.send(frame(number))
                number += 1
            return until()

        wait_for(step, "the peer has enough")


class FfmpegTests(PeerCase):
    skip = missing("ffmpeg")

    def test_two_streams_sample_exact(self) -> None:
        """STR-3: ffmpeg reads the SDP and finds channel n's samples to be n, nothing lost."""
        spec = self.spec(L16, 2, "mono")
        self.fanout.add("ffmpeg", L16, spec)
        description = sdp.SessionDescription(
            "127.0.0.1",
            "127.0.0.1",
            "two channels: ä",
            media=tuple(
                sdp.Media(
                    group.udp_port,
                    group.payload_type,
                    "L16",
                    48_000,
                    ssrc=group.ssrc,
                    packet_ms=5,
                    rtcp_port=group.udp_port + 1,
                    extensions={1: NTP64_URI, 2: EVENT_FLAGS_URI},
                    title=f"CH{group.ssrc}",
                )
                for group in spec.groups
            ),
        )
        file = self.directory / "two.sdp"
        file.write_text(sdp.write(description), newline="")
        outputs = [self.directory / f"{n}.raw" for n in range(2)]
        command = [
            "ffmpeg",
            "-v",
            "warning",
            "-protocol_whitelist",
            "file,rtp,udp",
            "-i",
            str(file),
        ]
        for n, output in enumerate(outputs):
            command += ["-map", f"0:{n}", "-t", "0.5", "-c:a", "pcm_s16le", "-f", "s16le"]
            command.append(str(output))
        child = self.peer(command)
        self.play(self.constant_frame, lambda: not child.running())
        self.assertEqual(child.wait(), 0, child.text())
        for n, output in enumerate(outputs):
            samples = np.fromfile(output, np.int16)
            self.assertGreaterEqual(len(samples), 23_000)
            self.assertEqual(set(samples.tolist()), {n + 1}, child.text())

    def constant_frame(self, number: int) -> EncodedFrame:
        pcm = np.tile(np.array([1, 2], np.int32) << 16, (240, 1))
        return EncodedFrame(L16, 240 * number, 240, 0, 0, pcm_to_wire(pcm, 2))


class GstreamerTests(PeerCase):
    skip = missing("gst-launch-1.0")

    def test_bundled_opus_is_multiopus(self) -> None:
        """GStreamer decodes a bundle of four separately encoded channels: 200, 400, 600, 800 Hz."""
        import opuslib

        spec = self.spec(OPUS, 4, "bundle")
        self.assertEqual([g.channels for g in spec.groups], [(1, 2, 3, 4)])
        self.fanout.add("gst", OPUS, spec)
        output = self.directory / "out.raw"
        fmtp = sdp.multiopus_fmtp(4)
        caps = (
            "application/x-rtp,media=(string)audio,clock-rate=(int)48000,"
            "encoding-name=(string)MULTIOPUS,payload=(int)97,encoding-params=(string)4,"
            + ",".join(f'{name}=(string)"{value}"' for name, value in fmtp.items())
        )
        child = self.peer(
            [
                *("gst-launch-1.0", "-q", "udpsrc", f"port={spec.groups[0].udp_port}"),
                *("address=127.0.0.1", f"caps={caps}", "!", "rtpjitterbuffer", "latency=20"),
                *("!", "rtpopusdepay", "!", "opusdec", "!", "audioconvert"),
                *("!", "audio/x-raw,format=S16LE", "!", "filesink", "buffer-mode=2"),
                f"location={output}",
            ]
        )
        low_delay = opuslib.APPLICATION_RESTRICTED_LOWDELAY
        encoders = [opuslib.Encoder(48_000, 1, low_delay) for _ in range(4)]
        for encoder in encoders:
            encoder.vbr = False
            encoder.bitrate = OPUS.opus_bitrate
        phase = np.arange(240) / 48_000

        def frame(number: int) -> EncodedFrame:
            payload = np.zeros((4, OPUS.packet_bytes), np.uint8)
            at = phase + number * 0.005
            for n, encoder in enumerate(encoders):
                tone = np.sin(2 * np.pi * 200 * (n + 1) * at) * 8000
                packet = encoder.encode(tone.astype(np.int16).tobytes(), 240)
                payload[n] = np.frombuffer(packet, np.uint8)
            return EncodedFrame(OPUS, 240 * number, 240, 0, 0, payload)

        enough = 48_000 * 4 * 2
        self.play(frame, lambda: output.exists() and output.stat().st_size > enough)
        child.stop()
        audio = np.fromfile(output, np.int16)
        audio = audio[: len(audio) // 4 * 4].reshape(-1, 4)[12_000:36_000].astype(float)
        spectrum = np.abs(np.fft.rfft(audio, axis=0))
        found = sorted((np.argmax(spectrum, axis=0) * 2).tolist())
        self.assertEqual(found, [200, 400, 600, 800], child.text())
