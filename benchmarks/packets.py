"""Part ``packets``: packets a second for one listener of 32 channels, by layout and codec."""

from __future__ import annotations

import time

from benchmarks.report import PartResult, Progress, Table, Verdict
from benchmarks.server import crowd, observe, server

CODECS = ("opus", "L16", "L24")
SETTLE_S = 0.3
WINDOW_S = 3.0
QUICK_WINDOW_S = 0.5
TARGET = 1 / 5


def run(quick: bool, progress: Progress) -> PartResult:
    result = PartResult("packets")
    table = Table(
        "One listener, 32 channels, 5 ms frames",
        ("codec", "mono, packets/s", "bundle, packets/s", "bundle / mono", "mono Mbit/s",
         "bundle Mbit/s"),
    )  # fmt: skip
    result.tables.append(table)
    with server() as process:
        for codec in CODECS:
            rates, megabits = {}, {}
            for layout in ("mono", "bundle"):
                progress(f"{codec} {layout}")
                with crowd(process.url, 1, compression=codec, layout=layout) as listener:
                    time.sleep(SETTLE_S)
                    window = observe(process, listener, QUICK_WINDOW_S if quick else WINDOW_S)
                heard = window.heard
                rates[layout] = heard["packets"] / heard["seconds"]
                # on the wire: IPv4 and UDP headers too
                octets = heard["octets"] + 28 * heard["packets"]
                megabits[layout] = octets * 8 / 1e6 / heard["seconds"]
                result.data[f"{codec} {layout}"] = heard
            share = rates["bundle"] / rates["mono"]
            table.rows.append(
                (
                    codec,
                    round(rates["mono"]),
                    round(rates["bundle"]),
                    f"1/{1 / share:.1f}",
                    megabits["mono"],
                    megabits["bundle"],
                )
            )
            result.verdicts.append(
                Verdict(
                    f"{codec}: packets bundled, of one packet a channel",
                    "<= 1/5",
                    f"1/{1 / share:.1f}",
                    share <= TARGET,
                )
            )
    result.notes.append(
        "Five milliseconds of one channel are 60 bytes of Opus, 480 of L16, 720 of L24: two or "
        "three PCM channels fill a packet of 1,472 bytes, so PCM bundles save little."
    )
    return result
