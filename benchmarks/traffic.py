"""Bytes of JSON for 20 listeners who watch levels and an engineer's page (CON-52).

The plain build is this one with ``--compression no``: levels in full each time, nothing
compressed.  Both run one after the other on the demo band, with the same clients and questions.
"""

from __future__ import annotations

import time
from typing import Any, Final

from benchmarks.child import Obedient
from benchmarks.report import PartResult, Progress, Table, Verdict
from benchmarks.server import server

LISTENERS: Final = 20
SETTLE_S: Final = 3.0


def run(quick: bool, progress: Progress) -> PartResult:
    seconds = 10.0 if quick else 30.0
    result = PartResult("traffic")
    counted: dict[str, dict[str, int]] = {}
    cpu: dict[str, float] = {}
    for name, options in (("plain", ("--compression=no",)), ("this", ())):
        progress(f"{LISTENERS} listeners watch levels for {seconds:g} s, {name} build")
        counted[name], cpu[name] = _watch(options, seconds)
    columns = ("kind", "plain B/s", "this B/s", "ratio")
    table = Table(f"JSON for {LISTENERS} listeners with live levels", columns)
    for kind in (*sorted(counted["plain"]), "all"):
        plain, this = (
            sum(counted[n].values()) if kind == "all" else counted[n].get(kind, 0)
            for n in ("plain", "this")
        )
        table.rows.append((kind, plain / seconds, this / seconds, this / plain))
    ratio = table.rows[-1][3]
    result.tables.append(table)
    result.verdicts.append(
        Verdict("JSON against the plain build", "at most 0.7x", f"{ratio:.2f}x", ratio <= 0.7)
    )
    result.notes.append(
        f"Server CPU while streaming to all of them: plain {cpu['plain']:.1f} %, "
        f"this {cpu['this']:.1f} % of one core."
    )
    result.data = {"seconds": seconds, "bytes": counted, "cpu_percent": cpu}
    return result


def _watch(options: tuple[str, ...], seconds: float) -> tuple[dict[str, Any], float]:
    with server(*options) as process:
        token = process.login()
        watchers = Obedient("benchmarks.watchers", process.url, str(LISTENERS), token)
        try:
            time.sleep(SETTLE_S)
            watchers.ask("begin")
            used = process.cpu_s()
            time.sleep(seconds)
            percent = 100 * (process.cpu_s() - used) / seconds
            return watchers.ask("end"), percent
        finally:
            watchers.close()
