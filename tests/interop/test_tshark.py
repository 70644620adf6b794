"""STR-4, STR-43, STR-52, CLK-3: what the server puts on the wire, dissected by tshark.

Ordinary streams are captured on loopback.  There a message that the kernel is to cut into packets
(GSO) is never cut, so streams that share a port run in a network namespace of their own whose
loopback lacks that offload: what is captured there is what any cable carries.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol
from twisted.trial import unittest

from protocols.control.messages import Stream
from protocols.rtp import sdp
from tests.support.ports import free_pairs
from tests.support.processes import ROOT, Child, ServerProcess, missing
from tests.support.scripted import ListenerCase

JOIN = ROOT / "docs" / "examples" / "join.py"
FIELDS = (
    "frame.time_epoch",
    "ip.dsfield.dscp",
    "udp.dstport",
    "udp.length",
    "rtp.ssrc",
    "rtp.seq",
    "rtp.timestamp",
    "rtp.p_type",
    "rtp.ext.profile",
    "rtp.ext.rfc5285.id",
    "rtp.ext.rfc5285.data",
    "rtcp.pt",
    "rtcp.ssrc.identifier",
    "rtcp.timestamp.ntp.msw",
    "rtcp.timestamp.ntp.lsw",
    "rtcp.timestamp.rtp",
    "rtcp.sender.packetcount",
    "rtcp.sender.octetcount",
    "rtcp.sdes.text",
    "rtcp.length_check",
    "_ws.malformed",
    "_ws.expert.message",
)
NTP_EPOCH = 2_208_988_800
BYE = b"the listener said bye"
SKEW_S = 0.5
"""How far two readings of this machine's clock may lie apart when it is busy."""
Packet = dict[str, str]


class Ear(DatagramProtocol):
    """Takes what comes to one port, and counts."""

    def __init__(self) -> None:
        self.packets = 0
        self.extended = 0
        self.reports = 0

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.packets += 1
        self.reports += datagram[1] == 200
        self.extended += datagram[1] < 200 and bool(datagram[0] & 0x10)


class Capture:
    """dumpcap on loopback, for UDP ports ``first`` to ``last``."""

    def __init__(
        self, file: Path, ranges: Iterable[tuple[int, int]], prefix: Sequence[str] = ()
    ) -> None:
        self.file = file
        wanted = " or ".join(f"udp portrange {first}-{last}" for first, last in ranges)
        command = ("dumpcap", "-q", "-i", "lo", "-B", "16", "-f", wanted, "-w", str(file))
        self.child = Child(command, prefix=prefix)

    def running(self) -> bool:
        """Whether it has begun."""
        if not self.child.running():
            raise unittest.SkipTest(f"dumpcap may not capture here: {self.child.text().strip()}")
        return "File:" in self.child.text()

    def has(self, text: bytes, times: int = 1) -> bool:
        return self.file.read_bytes().count(text) >= times

    def end(self) -> None:
        self.child.stop(signal.SIGINT)
        self.child.close()

    def decode(self, rtp_ports: Collection[int], *options: str) -> list[str]:
        """Lines of tshark with the even ports read as RTP, the odd ones as RTCP."""
        command = ["tshark", "-r", str(self.file), *options]
        for port in rtp_ports:
            command += ["-d", f"udp.port=={port},rtp", "-d", f"udp.port=={port + 1},rtcp"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.splitlines()

    def packets(self, rtp_ports: Collection[int]) -> list[Packet]:
        wanted = [word for field in FIELDS for word in ("-e", field)]
        options = ("-T", "fields", "-E", "separator=|", "-E", "occurrence=a", *wanted)
        lines = self.decode(rtp_ports, *options)
        return [dict(zip(FIELDS, line.split("|"), strict=True)) for line in lines]

    def streams(self, rtp_ports: Collection[int]) -> dict[int, tuple[int, int]]:
        """Packets and lost ones, by SSRC, as tshark counts them."""
        found = {}
        for line in self.decode(rtp_ports, "-q", "-z", "rtp,streams"):
            row = re.search(r" 0x([0-9A-F]{8}) +RTPType-\d+ +(\d+) +(-?\d+) \(", line)
            if row:
                found[int(row[1], 16)] = (int(row[2]), int(row[3]))
        return found


def of_ssrc(packets: Iterable[Packet], ssrc: int) -> list[Packet]:
    return [p for p in packets if p["rtp.ssrc"] and int(p["rtp.ssrc"], 16) == ssrc]


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Start and length of each run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found


def is_before(packet: Packet, other: Packet) -> bool:
    """Whether it was captured before the other."""
    return float(packet["frame.time_epoch"]) <= float(other["frame.time_epoch"])


def unix_time(seconds: int, fraction: int) -> float:
    return seconds - NTP_EPOCH + fraction / 2**32


class TsharkCase(ListenerCase):
    skip = missing("tshark", "dumpcap")

    async def capture(
        self, ranges: Iterable[tuple[int, int]], prefix: Sequence[str] = ()
    ) -> Capture:
        capture = Capture(self.directory() / "wire.pcapng", ranges, prefix)
        self.addCleanup(capture.child.close)
        await self.until(capture.running, "dumpcap captures")
        return capture

    def check_sound(self, packets: Sequence[Packet]) -> None:
        """All are RTP or RTCP, none is malformed or remarkable."""
        for packet in packets:
            self.assertTrue(packet["rtp.ssrc"] or packet["rtcp.pt"], packet)
            self.assertFalse(packet["_ws.malformed"] or packet["_ws.expert.message"], packet)
            self.assertEqual(packet["rtcp.length_check"], "1" if packet["rtcp.pt"] else "")

    def check_sequence(self, packets: Sequence[Packet], frame: int) -> None:
        """STR-4: no number is left out, and the time stamps are whole packets apart."""
        first = packets[0]
        numbers = [int(p["rtp.seq"]) for p in packets]
        expected = [(numbers[0] + n) % 2**16 for n in range(len(packets))]
        self.assertEqual(numbers, expected)
        for packet in packets:
            ahead = (int(packet["rtp.timestamp"]) - int(first["rtp.timestamp"])) % 2**32
            self.assertEqual(ahead % frame, 0, packet)

    def check_extensions(self, rtp: Sequence[Packet], parts: int = 1) -> None:
        """STR-52, CLK-3: send time and flags in the first 3 frames and in 3 more 5 s later."""
        extended = [n for n, packet in enumerate(rtp) if packet["rtp.ext.profile"]]
        self.assertEqual(runs(extended)[:2], [(0, 3 * parts), (1000 * parts, 3 * parts)])
        for number in extended:
            packet = rtp[number]
            self.assertEqual(packet["rtp.ext.profile"], "0xbede")
            self.assertEqual(packet["rtp.ext.rfc5285.id"], "1,2")
            ntp, flags = packet["rtp.ext.rfc5285.data"].split(",")
            self.assertEqual((len(ntp), flags), (16, "01"))
            sent = unix_time(int(ntp[:8], 16), int(ntp[8:], 16))
            self.assertLess(abs(sent - float(packet["frame.time_epoch"])), SKEW_S)

    def check_reports(self, packets: Sequence[Packet], rtp: Sequence[Packet], ssrc: int) -> None:
        """RFC 3550 sections 6.4.1, 6.6: SRs with true times and counts, and a BYE at the end."""
        source = f"0x{ssrc:08x}"
        reports = [p for p in packets if source in p["rtcp.ssrc.identifier"]]
        *sender, bye = reports
        self.assertTrue(sender)
        for report in sender:
            self.assertEqual(report["rtcp.pt"], "200,202")
            captured = float(report["frame.time_epoch"])
            seconds, fraction = (int(report[f"rtcp.timestamp.ntp.{w}"]) for w in ("msw", "lsw"))
            self.assertLess(abs(unix_time(seconds, fraction) - captured), SKEW_S)
            before = [p for p in rtp if float(p["frame.time_epoch"]) <= captured]
            self.assertEqual(int(report["rtcp.sender.packetcount"]), len(before))
            octets = [int(p["udp.length"]) - 20 - 16 * bool(p["rtp.ext.profile"]) for p in before]
            self.assertEqual(int(report["rtcp.sender.octetcount"]), sum(octets))
            stamps = int(report["rtcp.timestamp.rtp"]), int(before[-1]["rtp.timestamp"])
            ahead = (stamps[0] - stamps[1] + 2**31) % 2**32 - 2**31
            self.assertLess(abs(ahead), SKEW_S * 48_000)
        self.assertEqual(bye["rtcp.pt"], "201,202,203")
        self.assertIn(BYE.decode(), bye["rtcp.sdes.text"])
        self.assertGreater(bye["frame.time_epoch"], rtp[-1]["frame.time_epoch"])
        for report in reports:
            self.assertIn("m32-server@127.0.0.1", report["rtcp.sdes.text"])


class Wire(TsharkCase):
    async def test_streams(self) -> None:
        """STR-4, STR-43, STR-52, CLK-3: RTP, its time extension, RTCP and DSCP, for 6 seconds."""
        servers = {46: self.serve(), 34: self.serve("--dscp=34")}
        first = free_pairs(5)
        ears = {port: Ear() for port in range(first, first + 10)}
        for port, ear in ears.items():
            bound = reactor.listenUDP(port, ear, servers[46].host)  # type: ignore[attr-defined]
            self.addCleanup(bound.stopListening)
        capture = await self.capture([(first, first + 9)])
        listeners = []
        for dscp, wanted in (
            (46, {"channels": (5, 6, 7), "compression": "L24", "layout": "mono"}),
            (46, {"channels": range(1, 9), "compression": "opus", "layout": "bundle"}),
            (34, {"channels": (1, 2, 3), "compression": "none", "layout": "bundle"}),
        ):
            one = await self.join(
                servers[dscp], udp_port=first, ports="consecutive", frame_ms=5, **wanted
            )
            listeners.append((dscp, one))
            first += 2 * len(one.stream.groups)
        even, odd = (
            [ear for port, ear in ears.items() if port % 2 == odd] for odd in (False, True)
        )
        await self.until(lambda: all(ear.extended >= 6 for ear in even), "times sent twice")
        await self.until(lambda: all(ear.reports for ear in odd), "sender reports")
        for _, one in listeners:
            await one.leave()
        await self.until(lambda: capture.has(BYE, 5), "goodbyes are captured")
        capture.end()

        rtp_ports = [port for port in ears if port % 2 == 0]
        packets = capture.packets(rtp_ports)
        self.check_sound(packets)
        counted = capture.streams(rtp_ports)
        self.assertEqual(len(counted), 5)
        for dscp, one in listeners:
            self.check_listener(packets, counted, one.stream, dscp)

    def check_listener(
        self,
        packets: Sequence[Packet],
        counted: dict[int, tuple[int, int]],
        stream: Stream,
        dscp: int,
    ) -> None:
        for group in stream.groups:
            rtp = of_ssrc(packets, group.ssrc)
            self.assertEqual(counted[group.ssrc], (len(rtp), 0), "packets and lost")
            self.check_sequence(rtp, 240)
            for packet in rtp:
                self.assertEqual(packet["udp.dstport"], str(group.udp_port))
                self.assertEqual(packet["rtp.p_type"], str(group.payload_type))
                self.assertEqual(packet["ip.dsfield.dscp"], str(dscp))
            self.check_extensions(rtp)
            self.check_reports(packets, rtp, group.ssrc)


class Segmented(TsharkCase):
    if not TsharkCase.skip:
        skip = missing("ip", "ethtool") or (
            None if os.geteuid() == 0 else "network namespaces need root"
        )

    def namespace(self) -> list[str]:
        """A network namespace with a loopback that lacks UDP segmentation; how to run in it."""
        name = f"m32t{os.getpid() % 100_000}"
        inside = ["ip", "netns", "exec", name]
        self.addCleanup(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        for command in (
            ["ip", "netns", "add", name],
            ["ip", "-n", name, "link", "set", "lo", "up"],
            [*inside, "ethtool", "-K", "lo", "tx-udp-segmentation", "off"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise unittest.SkipTest(f"{' '.join(command)}: {done.stderr.strip()}")
        return inside

    async def test_streams_that_share_a_port(self) -> None:
        """STR-4: 32 channels in one message each frame are 32, or 2, sound packets."""
        inside = self.namespace()
        server = ServerProcess("--source=test", prefix=inside)
        self.addCleanup(server.close)
        self.addCleanup(server.stop)
        first = free_pairs(2)
        capture = await self.capture([(first, first + 3)], inside)
        asked = {
            first: ("compression=none", "layout=mono"),
            first + 2: ("compression=opus", "layout=bundle", "frame_ms=5"),
        }
        joined = []
        for port, words in asked.items():
            command = [sys.executable, str(JOIN), server.url, str(port), "ports=single", *words]
            joined.append(Child(command, prefix=inside))
            self.addCleanup(joined[-1].close)
        await self.until(lambda: all("m=" in one.text() for one in joined), "the SDP is printed")
        await self.until(lambda: capture.file.stat().st_size > 3_000_000, "packets are captured")
        for one in joined:
            one.stop(signal.SIGINT)
        # 31 sources fit one goodbye: two for the 32 streams, and one for the bundles
        await self.until(lambda: capture.has(BYE, 3), "goodbyes are captured")
        capture.end()

        packets = capture.packets(asked)
        self.check_sound(packets)
        counted = capture.streams(asked)
        said = "sending by gso" in server.text()
        self.assertTrue(said, "nothing is segmented here, so nothing was shown")
        for one, streams in zip(joined, (32, 2), strict=True):
            media = sdp.parse(one.text()).media
            self.assertEqual(len(media), streams)
            for medium in media:
                assert medium.ssrc is not None
                rtp = of_ssrc(packets, medium.ssrc)
                self.assertGreater(len(rtp), 100)
                self.assertEqual(counted.pop(medium.ssrc), (len(rtp), 0), "packets and lost")
                self.check_sequence(rtp, 240)
                self.assertEqual({p["rtp.p_type"] for p in rtp}, {str(medium.payload_type)})
                self.assertEqual({p["udp.dstport"] for p in rtp}, {str(medium.port)})
        self.assertEqual(counted, {})

    async def test_frames_in_parts(self) -> None:
        """STR-4, STR-12, STR-52: 7, 7 and 6 channels of L24, each frame of 5 ms in 4 packets."""
        inside = self.namespace()
        server = ServerProcess("--source=test", prefix=inside)
        self.addCleanup(server.close)
        self.addCleanup(server.stop)
        port = free_pairs(1)
        capture = await self.capture([(port, port + 1)], inside)
        wanted = ",".join(f'{{"id":{channel}}}' for channel in range(1, 21))
        words = ("compression=L24", "layout=bundle", "frame_ms=5", "max_group=8", "ports=single")
        command = [sys.executable, str(JOIN), server.url, str(port), *words, f"channels=[{wanted}]"]
        joined = Child(command, prefix=inside)
        self.addCleanup(joined.close)
        await self.until(lambda: "m=" in joined.text(), "the SDP is printed")
        # 6 s of 2,400 packets a second, of 1,200 to 1,300 bytes
        await self.until(lambda: capture.file.stat().st_size > 20_000_000, "packets are captured")
        joined.stop(signal.SIGINT)
        await self.until(lambda: capture.has(BYE), "the goodbye is captured")
        capture.end()

        packets = capture.packets([port])
        self.check_sound(packets)
        counted = capture.streams([port])
        self.assertIn("sending by gso", server.text())
        media = sdp.parse(joined.text()).media
        kinds = [(medium.channels, medium.packet_ms) for medium in media]
        self.assertEqual(kinds, [(7, 1.25), (7, 1.25), (6, 1.25)])
        reports = [packet for packet in packets if packet["rtcp.sender.packetcount"]]
        self.assertTrue(reports)
        said: dict[str, list[list[int]]] = {
            field: [[int(value) for value in report[field].split(",")] for report in reports]
            for field in ("rtcp.sender.packetcount", "rtcp.sender.octetcount")
        }
        true = []
        for medium in media:
            assert medium.ssrc is not None
            rtp = of_ssrc(packets, medium.ssrc)
            self.assertEqual(counted.pop(medium.ssrc), (len(rtp), 0), "packets and lost")
            self.check_sequence(rtp, 60)
            stamps = [int(packet["rtp.timestamp"]) for packet in rtp]
            apart = [(b - a) % 2**32 for a, b in pairwise(stamps)]
            in_a_frame = {ahead for number, ahead in enumerate(apart) if number % 4 < 3}
            self.assertEqual(in_a_frame, {60})
            for packet in rtp:
                size = 12 + 16 * bool(packet["rtp.ext.profile"]) + 60 * 3 * medium.channels
                self.assertEqual(int(packet["udp.length"]), 8 + size)
            self.check_extensions(rtp, parts=4)
            true.append([sum(is_before(p, report) for p in rtp) for report in reports])
        self.assertEqual(counted, {})
        # one compound has the reports of all streams to a port
        counts = [list(column) for column in zip(*true, strict=True)]
        self.assertEqual(said["rtcp.sender.packetcount"], counts)
        sizes = [60 * 3 * medium.channels for medium in media]
        octets = [[n * size for n, size in zip(row, sizes, strict=True)] for row in counts]
        self.assertEqual(said["rtcp.sender.octetcount"], octets)
