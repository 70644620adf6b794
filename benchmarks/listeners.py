"""Part ``listeners``: a real server with 1 to 1,000 listeners of 32 channels each.

Every listener has its control connection with heartbeats and clock requests and sends receiver
reports; audio comes in the default format (Opus, bundled, 5 ms).  Server, listeners and this
program share the machine, and the way into the listeners' sockets is charged to the server (see
:mod:`benchmarks.fanout`).
"""

from __future__ import annotations

import math
import time

from benchmarks import sampling
from benchmarks.child import ChildError
from benchmarks.report import PartResult, Progress, Table, Verdict
from benchmarks.server import QUIET_PERCENT, Window, crowd, observe, server

FULL = (1, 10, 20, 50, 100, 200, 500, 1000)
QUICK = (1, 20)
SETTLE_S = 3.0
QUICK_SETTLE_S = 1.0
WINDOW_S = 11.0
TRIES = 3
QUICK_WINDOW_S = 3.0
JUDGED = 20
FULL_HOUSE = 1000
KEEPS_UP_LOSS = 1.0
DEFAULT_MS = 5.0
LONG_MS = 10.0
SAMPLED = (JUDGED, FULL_HOUSE)
CODEC = "libopus"

Shares = dict[tuple[str, str], float]


def run(quick: bool, progress: Progress) -> PartResult:
    result = PartResult("listeners")
    table = Table(
        "Listeners x 32 channels, Opus bundles",
        ("listeners", "frame ms", "CPU %", "reactor %", "audio %", "waited %", "others %", "MB",
         "last packet p50 ms", "p99 ms", "send_ms p99", "lost %", "jitter p50 ms", "p99 ms"),
    )  # fmt: skip
    result.tables.append(table)
    seconds, tries = (QUICK_WINDOW_S, 1) if quick else (WINDOW_S, TRIES)
    settle = QUICK_SETTLE_S if quick else SETTLE_S
    windows: dict[tuple[int, float], Window] = {}
    places: dict[int, Shares] = {}
    unsampled = sampling.missing()
    wanted = [(listeners, DEFAULT_MS) for listeners in (QUICK if quick else FULL)]
    if not quick:
        wanted.append((FULL_HOUSE, LONG_MS))
    for listeners, frame_ms in wanted:
        progress(f"{listeners} listeners, {frame_ms:g} ms")
        try:
            with server() as process, crowd(process.url, listeners, frame_ms=frame_ms) as everybody:
                time.sleep(settle)
                window = observe(process, everybody, seconds, tries=tries)
                if listeners in SAMPLED and frame_ms == DEFAULT_MS and not unsampled:
                    places[listeners] = sampling.shares(process.pid, seconds / 2)
        except sampling.SamplingError as reason:
            unsampled = str(reason)
        except ChildError as reason:
            result.notes.append(f"{listeners} listeners could not join: {reason}.")
            continue
        windows[listeners, frame_ms] = window
        table.rows.append(_row(listeners, frame_ms, window))
        result.data[f"opus {listeners} {frame_ms:g} ms"] = window.json()
    progress(f"{JUDGED} listeners without a codec")
    with server() as process, crowd(process.url, JUDGED, compression="L16") as everybody:
        time.sleep(settle)
        plain = observe(process, everybody, seconds, tries=tries)
    result.data[f"L16 {JUDGED}"] = plain.json()
    if (JUDGED, DEFAULT_MS) in windows:
        result.tables.append(_with_and_without(windows[JUDGED, DEFAULT_MS], plain))
        _judge(result, windows[JUDGED, DEFAULT_MS], plain, places.get(JUDGED))
    _judge_full_house(result, windows)
    if unsampled:
        result.notes.append(f"Not told by libraries: {unsampled}.")
    else:
        result.tables.append(_places(windows, places, result))
    result.notes += [
        "CPU is of one core; reactor and audio are the server's main thread and all others; "
        "waited: the reactor could have run but had no CPU; others: what other programs took "
        f"(above {QUIET_PERCENT:g} % the window is repeated, twice at most, and the least spoilt "
        "counts).",
        "last packet: from a frame's last sample to its last datagram in the last listener's "
        "socket, by kernel time stamps and sender reports; send_ms: the same as the server sees "
        "it, over its last 2,000 frames.",
        "lost: sequence numbers missing, and frames that the server gave up itself.",
    ]
    return result


def _with_and_without(opus: Window, plain: Window) -> Table:
    table = Table(
        f"{JUDGED} listeners with and without a codec",
        ("format", "CPU %", "reactor %", "audio %", "packets/s"),
    )
    for name, one in (("Opus", opus), ("L16", plain)):
        rate = round(one.heard["packets"] / one.heard["seconds"])
        table.rows.append((name, one.cpu["total"], one.cpu["main"], one.cpu["rest"], rate))
    return table


def _places(
    windows: dict[tuple[int, float], Window], places: dict[int, Shares], result: PartResult
) -> Table:
    """Where the CPU goes: perf's shares of what was measured without perf."""
    table = Table(
        "Where the server's CPU goes, % of a core",
        ("thread", "library", *(f"{listeners:,} listeners" for listeners in places)),
    )
    totals = {listeners: windows[listeners, DEFAULT_MS].cpu["total"] for listeners in places}
    keys = {key: None for one in places.values() for key in sorted(one, key=lambda k: -one[k])}
    for key in sorted(keys, key=lambda key: key[0], reverse=True):
        table.rows.append((*key, *(totals[n] * places[n].get(key, 0.0) for n in places)))
    result.data["places"] = {
        str(n): {" ".join(key): totals[n] * share for key, share in one.items()}
        for n, one in places.items()
    }
    return table


def _row(listeners: int, frame_ms: float, window: Window) -> tuple[object, ...]:
    cpu, heard = window.cpu, window.heard
    last = heard.get("last_packet_ms", {})
    return (
        listeners,
        f"{frame_ms:g}",
        cpu["total"],
        cpu["main"],
        cpu["rest"],
        cpu["waited"],
        cpu["others"],
        window.memory_mb,
        last.get("p50"),
        last.get("p99"),
        window.health["rooms"]["streaming"]["details"]["send_ms_p99"],
        heard["loss_percent"],
        heard["jitter_ms"]["p50"],
        heard["jitter_ms"]["p99"],
    )


def _judge(result: PartResult, judged: Window, plain: Window, shares: Shares | None) -> None:
    heard, cpu = judged.heard, judged.cpu
    loss, jitter = heard["loss_percent"], heard["jitter_ms"]["p99"]
    last = heard.get("last_packet_ms", {}).get("p99", math.inf)
    if shares is None:
        codec = cpu["rest"] - plain.cpu["rest"]
        how = "codec by difference to L16"
    else:
        codec = cpu["total"] * sum(share for (_, place), share in shares.items() if place == CODEC)
        how = "codec by perf"
    besides = cpu["total"] - codec
    for what, target, measured, met in (
        ("loss", "0", f"{loss:.3f} % ({heard['lost'] + heard['never_sent']} packets)", loss == 0),
        ("jitter p99", "< 1 ms", f"{jitter:.2f} ms", jitter < 1),
        ("frame complete to last datagram, p99", "< 2 ms", f"{last:.2f} ms", last < 2),
        ("CPU", "< 80 %", f"{cpu['total']:.1f} %", cpu["total"] < 80),
        (
            f"CPU besides the codec ({how})",
            "< 15 %",
            f"{cpu['total']:.1f} - {codec:.1f} = {besides:.1f} %",
            besides < 15,
        ),
    ):
        result.verdicts.append(Verdict(f"{JUDGED} listeners: {what}", target, measured, met))


def _judge_full_house(result: PartResult, windows: dict[tuple[int, float], Window]) -> None:
    for frame_ms in (DEFAULT_MS, LONG_MS):
        what = f"{FULL_HOUSE:,} listeners on this machine, {frame_ms:g} ms frames"
        full = windows.get((FULL_HOUSE, frame_ms))
        if full is None:
            result.verdicts.append(Verdict(what, f"loss < {KEEPS_UP_LOSS:g} %", "not tried", None))
            continue
        loss, joined = full.heard["loss_percent"], full.heard["listeners"]
        result.verdicts.append(
            Verdict(
                what,
                f"loss < {KEEPS_UP_LOSS:g} %",
                f"{joined:,} joined, {loss:.2f} % lost",
                joined == FULL_HOUSE and loss < KEEPS_UP_LOSS,
            )
        )
