"""``twistd m32net``: its options, and the server they make.

What can be wrong before the reactor runs (options, state directory, database, device, libraries)
is one line and exit status 1.  The rooms are put together in :mod:`m32net.server`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from twisted.python import usage

from m32net.audio.sources import SourceError
from m32net.config import SETTINGS, ConfigError, ServerConfig, resolve
from m32net.interfaces import RefusedError
from m32net.ops.process import end_within, steady_timers
from m32net.server import STOP_S, Server, fail
from m32net.store.database import StoreError
from m32net.trust.files import TrustError

FLAGS: Final = frozenset({"take-over"})
"""Options without a value on the command line; elsewhere they are yes or no."""


class Options(usage.Options):
    """Options of ``twistd m32net``; see :data:`m32net.config.SETTINGS`."""

    synopsis = "twistd [twistd options] m32net [options]"
    longdesc = (
        "Captures the console's USB channels (or a built-in band), encodes them and sends every "
        "listener the channels it asks for. Each option can also be given as M32NET_OPTION_NAME "
        "in the environment or as a key of the --config file; the command line wins, then the "
        "environment, then the file."
    )
    optParameters: Final = [
        ["config", "c", None, "TOML file with any of these options as keys."],
        *(
            [s.option, None, None, s.help + (f" [default: {s.default}]" if s.default else "")]
            for s in SETTINGS
            if s.option not in FLAGS
        ),
    ]
    optFlags: Final = [
        ["no-mdns", None, "Do not announce the server (same as --mdns no)."],
        *([s.option, None, s.help] for s in SETTINGS if s.option in FLAGS),
    ]

    def parseOptions(self, options: Any = None) -> None:
        """As usual, but what is wrong is one line and exit status 1, not the whole help."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as reason:
            fail(f"{reason}; `twistd m32net --help` lists the options")

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def server_config(self, environ: Mapping[str, str]) -> ServerConfig:
        """:raises ConfigError: a value that cannot be used."""
        given = {setting.option: self[setting.option] for setting in SETTINGS}
        given |= {option: "yes" if self[option] else None for option in FLAGS}
        if self["no-mdns"]:
            given["mdns"] = "no"
        toml = self["config"] or environ.get("M32NET_CONFIG")
        return resolve(given, environ, Path(toml) if toml else None)


def makeService(options: Options) -> Server:
    """The whole server, not yet started.

    :raises SystemExit: with one line, when it could not run.
    """
    from twisted.internet import reactor  # noqa: PLC0415

    steady_timers(reactor)
    try:
        server = Server(reactor, options.server_config(os.environ))
    except (ConfigError, StoreError, SourceError, RefusedError, TrustError) as reason:
        fail(str(reason))
    reactor.callWhenRunning(_stop_on_signals, reactor)
    return server


def _stop_on_signals(reactor: Any) -> None:
    """SIGTERM and SIGINT stop in order, with exit status 0; a second one ends at once (CON-50).

    So does SIGHUP, when the terminal is closed, unless it is ignored (``nohup``): listeners are
    told either way.  Twisted's own handlers would make twistd end by the signal after the orderly
    stop.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def stop(_number: int, _frame: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        end_within(STOP_S)
        reactor.callFromThread(reactor.stop)

    for number in numbers:
        signal.signal(number, stop)
