"""Listeners that only receive: a port each, everything read and counted.

    python -m benchmarks.sink HOST PORTS gro|plain

Says its ports; each line on standard input is answered with what has arrived so far.
"""

from __future__ import annotations

import json
import select
import sys
import time

from benchmarks.bulk import BulkReader

DRAIN_S = 0.004


def main() -> None:
    host, ports, mode = sys.argv[1:]
    slot, batch = (16_384, 64) if mode == "gro" else (2_048, 256)
    readers = [
        BulkReader(host, 0, gro=mode == "gro", slot=slot, batch=batch, buffer_bytes=16 << 20)
        for _ in range(int(ports))
    ]
    print(json.dumps({"ports": [reader.port for reader in readers]}), flush=True)
    octets = messages = 0
    while True:
        time.sleep(DRAIN_S)
        for reader in readers:
            some, size = reader.discard()
            messages += some
            octets += size
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps({"messages": messages, "octets": octets}), flush=True)


if __name__ == "__main__":
    main()
