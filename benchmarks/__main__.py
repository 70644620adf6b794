"""``python -m benchmarks``: every figure the product claims, measured on this machine.

Six parts, in turn; each prints its tables with targets and verdicts.  ``docs/benchmarks.md``
says what the figures are.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from twisted.python import usage

from benchmarks import machine
from benchmarks.report import PartResult, Progress

PARTS = {
    "a": "fanout",
    "b": "listeners",
    "c": "packets",
    "d": "latency",
    "e": "recovery",
    "f": "traffic",
}


class Options(usage.Options):
    """Options of ``python -m benchmarks``."""

    synopsis = "python -m benchmarks [options]"
    longdesc = (
        "Parts: a (fanout), what a packet costs against a bare loop and GStreamer; b (listeners), "
        "a real server with 1 to 1,000 listeners; c (packets), packets a second for each layout "
        "and codec; d (latency), from capture to the listener's output; e (recovery), how soon a "
        "listener is served again after a cut, against the plain build; f (traffic), bytes of "
        "JSON, against the same. "
        "All traffic is on loopback or in network namespaces."
    )
    optParameters: Final = [
        ["only", "o", None, "Run these parts only, e.g. a,c or fanout,packets."],
        ["json", "j", "results/bench.json", "Write everything to this file; '-' for none."],
    ]
    optFlags: Final = [["quick", "q", "Less of everything: below 90 s, and rougher."]]

    def postOptions(self) -> None:
        """Resolve letters and names of parts."""
        wanted = list(PARTS.values())
        if self["only"] is not None:
            words = [word.strip() for word in self["only"].split(",") if word.strip()]
            unknown = [word for word in words if word not in PARTS and word not in wanted]
            if unknown or not words:
                known = ", ".join(f"{letter} ({name})" for letter, name in PARTS.items())
                raise usage.UsageError(f"--only {self['only']}: the parts are {known}")
            chosen = {PARTS.get(word, word) for word in words}
            wanted = [name for name in wanted if name in chosen]
        self["parts"] = wanted


def run(options: Options) -> dict[str, Any]:
    """Run the parts that are wanted, print them, and give everything for the JSON file."""
    about = machine.description()
    print(
        f"m32net benchmarks, {about['date']}: {about['cpus']} CPUs ({about['cpu']}), "
        f"Linux {about['kernel']}, Python {about['python']}, load {about['load_before']}.\n"
        f"A fixed loop takes {about['loop_alone_ms']} ms alone, {about['loop_on_all_cpus_ms']} ms "
        "on each CPU when all are busy.\n"
    )
    results: dict[str, Any] = {"machine": about, "quick": bool(options["quick"]), "parts": {}}
    progress = Progress()
    missed = 0
    for name in options["parts"]:
        progress.part = name
        began = time.monotonic()
        part: PartResult = importlib.import_module(f"benchmarks.{name}").run(
            bool(options["quick"]), progress
        )
        progress.clear()
        seconds = time.monotonic() - began
        missed += sum(verdict.met is False for verdict in part.verdicts)
        print(f"## {name} ({seconds:.0f} s)\n\n{part.text()}\n", flush=True)
        results["parts"][name] = {**part.json(), "seconds": round(seconds, 1)}
    print("All targets met." if not missed else f"Targets missed: {missed}.")
    return results


def main() -> None:
    options = Options()
    try:
        options.parseOptions()
    except usage.UsageError as reason:
        print(f"benchmarks: {reason}; try `python -m benchmarks --help`", file=sys.stderr)
        raise SystemExit(2) from None
    results = run(options)
    if options["json"] != "-":
        path = Path(options["json"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"Written to {path}.")


if __name__ == "__main__":
    main()
