"""Writes settings without end and says what was confirmed, to be killed in the middle (STR-7).

A program, not a module: ``python -m tests.support.store_writer PATH``.  For each line ``SEED`` on
its standard input it forks a process that opens the database and changes settings, several at a
time, as fast as it can.  That process prints ``start PID`` and then ``SEED NUMBER KIND`` for every
change once its Deferred has fired.  Forking saves importing everything anew for each life.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import inlineCallbacks

from m32net.settings import AudioConfigChange, ChannelChange, Thresholds
from m32net.store.service import SettingsService, open_settings

KINDS = ("channel", "thresholds", "setting", "audio")
CHANNELS = 32


def as_thresholds(number: int) -> Thresholds:
    """A pair that tells a number below 5 million."""
    return Thresholds(1 + number // 2000, 3000 + number % 2000)


def told_by(thresholds: Thresholds) -> int:
    return (thresholds.interpolate - 1) * 2000 + thresholds.drop - 3000


def change(service: SettingsService, kind: str, number: int) -> defer.Deferred[Any]:
    """The change number ``number``; what it leaves behind tells the number."""
    if kind == "channel":
        name = f"{number} 🎸"
        return service.set_channels([ChannelChange(number % CHANNELS + 1, name=name)], who="w")
    if kind == "thresholds":
        return service.set_thresholds(as_thresholds(number), who="w")
    if kind == "setting":
        return service.set_settings({"step_up_after_s": 1 + number % 3000}, who=str(number))
    bitrate = 16_000 + number % 200_000
    return service.set_audio_config(AudioConfigChange(bitrate=bitrate), who="w", reason=str(number))


def live(path: Path, seed: int) -> None:
    from twisted.internet import reactor

    service = open_settings(path, reactor=reactor)

    @inlineCallbacks
    def write_for_ever(kind: str) -> Any:
        number = seed
        while True:
            number += 1
            yield change(service, kind, number)
            os.write(1, f"{seed} {number} {kind}\n".encode())

    for kind in KINDS:
        write_for_ever(kind).addErrback(lambda failure: (failure.printTraceback(), os._exit(3)))
    service.startService()
    os.write(1, f"start {os.getpid()}\n".encode())
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined]


def main(path: Path) -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            live(path, int(line))
        _, status = os.waitpid(child, 0)
        os.write(1, f"end {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
