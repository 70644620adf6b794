"""What the benchmarks count is what the listener's own statistics count (RFC 3550 A.1, A.8)."""

from __future__ import annotations

import socket
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.python import usage
from twisted.trial import unittest

from benchmarks.__main__ import Options
from benchmarks.bulk import ARRIVAL, BulkReader, jitter_ms, streams
from benchmarks.report import PartResult, Table, Verdict
from benchmarks.senders import CASES, Bare, Remembering, flattened, frames, specs
from m32net.streaming.fanout import Fanout
from protocols.datagram import SendMethod, open_udp
from protocols.mmsg import SOL_UDP, UDP_SEGMENT
from protocols.rtp.reception import ReceptionStatistics

HOST = "127.0.0.1"
RATE = 48_000


def packet(ssrc: int, sequence: int, timestamp: int, size: int = 100) -> bytes:
    return struct.pack(">BBHII", 0x80, 97, sequence, timestamp, ssrc).ljust(size, b"\0")


class ReaderTest(unittest.TestCase):
    def read(self, *, gro: bool) -> np.ndarray:
        reader = BulkReader(HOST, 0, gro=gro, slot=2_048, batch=4)
        self.addCleanup(reader.close)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sender.close)
        for frame in range(5):
            sequence = 65_534 + frame & 0xFFFF
            # two streams in one message, the second packet shorter; then one alone
            joined = packet(1, sequence, 240 * frame) + packet(2, 10 + frame, 240 * frame, 60)
            size = struct.pack("=H", 100)
            to = (HOST, reader.port)
            sender.sendmsg([joined], [(SOL_UDP, UDP_SEGMENT, size)], 0, to)
            sender.sendto(packet(3, frame, 0, 40), to)
        return np.concatenate(list(reader.drain()))

    def test_joined_and_single_datagrams(self) -> None:
        """Headers, sizes and order are the same, whether the kernel leaves them joined or not."""
        for gro in (True, False):
            arrivals = self.read(gro=gro)
            self.assertEqual(arrivals["ssrc"].tolist(), [1, 2, 3] * 5)
            self.assertEqual(arrivals["bytes"].tolist(), [100, 60, 40] * 5)
            self.assertEqual(arrivals["sequence"][::3].tolist(), [65_534, 65_535, 0, 1, 2])
            self.assertEqual(arrivals["timestamp"][1::3].tolist(), [0, 240, 480, 720, 960])
            self.assertTrue((np.diff(arrivals["at"]) >= 0).all())

    def test_discard_counts(self) -> None:
        reader = BulkReader(HOST, 0, slot=2_048, batch=4)
        self.addCleanup(reader.close)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sender.close)
        for _ in range(6):
            sender.sendto(bytes(50), (HOST, reader.port))
        self.assertEqual(reader.discard(), (6, 300))

    def test_too_long_for_its_slot(self) -> None:
        reader = BulkReader(HOST, 0, slot=64, batch=4)
        self.addCleanup(reader.close)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sender.close)
        sender.sendto(packet(1, 1, 1), (HOST, reader.port))
        list(reader.drain())
        self.assertEqual(reader.truncated, 1)


def arrivals_of(
    numbers: list[int], delays_us: list[int], *, start: int = 65_530, first: int = 2**32 - 480
) -> np.ndarray:
    """Packets of one stream by frame number, in the order they came, each with its delay."""
    made = np.zeros(len(numbers), ARRIVAL)
    made["ssrc"] = 7
    made["sequence"] = [start + n & 0xFFFF for n in numbers]
    made["timestamp"] = [first + 240 * n & 0xFFFF_FFFF for n in numbers]
    made["at"] = [
        10**18 + n * 5_000_000 + d * 1000 for n, d in zip(numbers, delays_us, strict=True)
    ]
    return made


class StreamsTest(unittest.TestCase):
    def test_loss_duplicates_and_disorder(self) -> None:
        arrivals = arrivals_of([0, 1, 3, 2, 5, 5, 8], [0] * 7)
        (one,) = streams(arrivals, RATE, 5.0)
        self.assertEqual((one.expected, one.due, one.received), (9, 9, 6))
        self.assertEqual((one.duplicates, one.reordered), (1, 1))

    def test_frames_that_were_never_sent(self) -> None:
        """Time stamps that jump without a missing number: the sender left frames out."""
        arrivals = arrivals_of([0, 1, 2, 3], [0] * 4)
        arrivals["timestamp"][2:] += np.uint32(2400)
        (one,) = streams(arrivals, RATE, 5.0)
        self.assertEqual((one.expected, one.received, one.due), (4, 4, 14))

    def test_streams_are_told_apart(self) -> None:
        both = np.concatenate([arrivals_of([0, 1], [0, 0]), arrivals_of([4, 6], [0, 0])])
        both["ssrc"][2:] = 9
        found = {one.ssrc: (one.received, one.expected) for one in streams(both, RATE, 5.0)}
        self.assertEqual(found, {7: (2, 2), 9: (2, 3)})
        self.assertEqual(streams(both[:0], RATE, 5.0), [])

    @given(st.lists(st.integers(0, 20_000), min_size=2, max_size=60))
    def test_jitter_is_the_listeners(self, delays_us: list[int]) -> None:
        arrivals = arrivals_of(list(range(len(delays_us))), delays_us)
        statistics = ReceptionStatistics(RATE)
        for one in arrivals:
            statistics.update(int(one["sequence"]), int(one["timestamp"]), int(one["at"]))
        ours = jitter_ms(arrivals["timestamp"], arrivals["at"], RATE)[-1]
        self.assertAlmostEqual(ours, statistics.jitter_ms, places=1)


class BareLoopTest(unittest.TestCase):
    def test_same_bytes_as_the_fan_out(self) -> None:
        """What the fan-out is compared with sends the same datagrams to the same places."""
        for case in CASES.values():
            sock = open_udp(HOST, 0)
            self.addCleanup(sock.close)
            ears = [BulkReader(HOST, 0, gro=False, batch=128) for _ in range(3)]
            for one in ears:
                self.addCleanup(one.close)
            sender = Remembering(sock)
            fanout = Fanout(sock, SendMethod.GSO, timestamp_offset=1, sender=sender)
            for number, spec in enumerate(specs(case, HOST, [one.port for one in ears])):
                fanout.add(str(number), case.profile, spec)
            (frame,) = frames(case.profile, 1)
            result = fanout.send(frame)
            flat = flattened(sender.table)
            Bare(sock, sender.table).send(frame)
            Bare(sock, flat).send(frame)
            for message in range(flat.count):
                self.assertEqual(flat.datagram(message), sender.table.datagram(message))
            for one in ears:
                arrivals = np.concatenate(list(one.drain()))
                thrice = np.split(arrivals, 3)
                self.assertEqual(len(arrivals), result.packets)
                for name in ("ssrc", "sequence", "timestamp", "bytes"):
                    self.assertTrue((thrice[1][name] == thrice[0][name]).all())
                    self.assertTrue((thrice[2][name] == thrice[0][name]).all())


class OptionsTest(unittest.TestCase):
    def parts(self, *arguments: str) -> list[str]:
        options = Options()
        options.parseOptions(list(arguments))
        return options["parts"]

    def test_parts(self) -> None:
        everything = ["fanout", "listeners", "packets", "latency", "recovery", "traffic"]
        self.assertEqual(self.parts(), everything)
        self.assertEqual(self.parts("--only", "d,a"), ["fanout", "latency"])
        self.assertEqual(self.parts("--only=packets"), ["packets"])
        for wrong in ("x", ",", "a,fan"):
            self.assertRaises(usage.UsageError, self.parts, "--only", wrong)


class ReportTest(unittest.TestCase):
    def test_table_and_verdicts(self) -> None:
        table = Table("Costs", ("what", "ns"))
        table.rows += [("a", 1234.5), ("long name", None), ("b", 0.123)]
        part = PartResult("x", [table], [Verdict("loss", "0", "1 %", met=False)])
        self.assertIn("| long name | -     |", part.text())
        self.assertIn("| a         | 1,234 |", part.text())
        self.assertIn("| loss | 0      | 1 %      | MISSED  |", part.text())
        self.assertEqual(part.json()["verdicts"][0]["met"], False)
