"""STR-4, STR-52: tshark reads the golden packets as their JSON twins say."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.processes import missing

GOLDEN = Path(__file__).parents[1] / "golden" / "rtp"


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
