"""``m32net``: the command for people, one sub-command a task.

The server itself runs under ``twistd m32net``; here are the listener, discovery, and the small
questions one has at the desk.  Each sub-command loads what it needs when it runs, so that
``m32net devices`` needs no network code and ``m32net listen`` no database.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from twisted.internet import defer, task
from twisted.python import usage

from m32net import __version__
from m32net.ops.process import steady_timers
from m32net.printable import printable, printable_json

Command = Callable[[Any, Any], "defer.Deferred[int]"]
"""Takes the reactor and the options; its Deferred gives the exit status."""


class CommandError(Exception):
    """One line for the person at the terminal."""


class DiscoverOptions(usage.Options):
    """``m32net discover``."""

    synopsis = "[--seconds S] [--interface ADDR] [--json]"
    longdesc = "Lists the m32net servers that announce themselves on this network (mDNS)."
    optParameters: Final = [
        ["seconds", "s", 3.0, "How long to look.", float],
        ["interface", "i", None, "Look on this IPv4 address only."],
    ]
    optFlags: Final = [["json", None, "Print one JSON array."]]


class DevicesOptions(usage.Options):
    """``m32net devices``."""

    synopsis = "[--json]"
    longdesc = "Lists the sound devices that `twistd m32net --source device:NAME` can capture."
    optFlags: Final = [["json", None, "Print one JSON array."]]


class PasswdOptions(usage.Options):
    """``m32net passwd``."""

    synopsis = "[--state-dir DIR] [--user NAME]"
    longdesc = "Makes a new password for the engineer and prints it; the old one no longer works."
    optParameters: Final = [
        ["state-dir", "d", None, "The server's state directory. [default: the server's default]"],
        ["user", "u", "admin", "Whose password."],
    ]


def listen_options() -> usage.Options:
    """The options of ``m32net listen``, loaded when they are asked for."""
    from m32net.listener.options import ListenOptions  # noqa: PLC0415

    return ListenOptions()  # type: ignore[no-untyped-call]


def migrate_options() -> usage.Options:
    """The options of ``m32net migrate``, loaded when they are asked for."""
    from m32net.migrate import MigrateOptions  # noqa: PLC0415

    return MigrateOptions()  # type: ignore[no-untyped-call]


class Options(usage.Options):
    """``m32net``."""

    longdesc = (
        "Personal monitoring over Wi-Fi for the Midas M32 and Behringer X32. "
        "The server itself is started with `twistd m32net`. "
        "`m32net COMMAND --help` tells more."
    )
    subCommands: Final = [
        ["listen", None, listen_options, "Listen to a server: play, record, measure."],
        ["discover", None, DiscoverOptions, "Find servers on this network."],
        ["devices", None, DevicesOptions, "List the sound devices a server can capture."],
        ["migrate", None, migrate_options, "Move a server's listeners to another one."],
        ["passwd", None, PasswdOptions, "Make a new password for the engineer."],
    ]

    def getSynopsis(self) -> str:
        """What to type, for this command or as the beginning for one of its own."""
        return "Usage: m32net" + ("" if self.subCommand else " COMMAND [options]")

    def opt_version(self) -> None:
        """Show the version and leave."""
        print(f"m32net {__version__}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """Some command is needed."""
        if self.subCommand is None:
            names = ", ".join(COMMANDS)
            raise usage.UsageError(f"which command? There are {names}")


def listen(reactor: Any, options: Any) -> defer.Deferred[int]:
    from m32net.listener.command import run  # noqa: PLC0415

    return run(reactor, options)


@defer.inlineCallbacks
def discover(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Look for servers for a while and print what was found; status 1 if nothing was."""
    from twisted.internet.threads import deferToThread  # noqa: PLC0415

    from m32net.discovery.mdns import DiscoveryError, FoundServer  # noqa: PLC0415
    from m32net.discovery.mdns import discover as find  # noqa: PLC0415

    if sys.stderr.isatty():
        print(f"Looking for {options['seconds']:g} s ...", file=sys.stderr)
    try:
        found: list[FoundServer] = yield deferToThread(
            find, options["seconds"], options["interface"]
        )
    except (DiscoveryError, OSError) as reason:
        raise CommandError(str(reason)) from None
    if options["json"]:
        rows = [
            {"name": one.name, "url": one.url, "version": one.version, "role": one.role}
            for one in found
        ]
        print(printable_json(rows))
    else:
        for one in found:
            print(printable(f"{one.url:32} {one.name}  {one.role}, version {one.version}"))
    if not found:
        print("No m32net server announces itself here.", file=sys.stderr)
    return 0 if found else 1


def devices(_reactor: Any, options: Mapping[str, Any]) -> defer.Deferred[int]:
    """Print the capture devices; status 1 if there is none."""
    from m32net.audio.sources import SourceError, list_devices  # noqa: PLC0415

    try:
        found = list_devices()
    except SourceError as reason:
        raise CommandError(str(reason)) from None
    if options["json"]:
        rows = [{"index": d.index, "name": d.name, "channels": d.channels} for d in found]
        print(printable_json(rows))
    else:
        for device in found:
            print(printable(f"{device.index:3}  {device.channels:3} channels  {device.name}"))
    if not found:
        print("No sound device that can capture was found.", file=sys.stderr)
    return defer.succeed(0 if found else 1)


@defer.inlineCallbacks
def migrate(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Move all listeners; status 3 if some stayed, 1 if it failed."""
    from m32net.migrate import MigrateError, run  # noqa: PLC0415

    try:
        status: int = yield run(reactor, options)
    except MigrateError as reason:
        raise CommandError(str(reason)) from None
    return status


def passwd(reactor: Any, options: Mapping[str, Any]) -> defer.Deferred[int]:
    """Give a user a new password and print it."""
    from m32net.config import default_state_dir  # noqa: PLC0415
    from m32net.store.database import StoreError  # noqa: PLC0415
    from m32net.store.service import open_settings  # noqa: PLC0415
    from m32net.web.auth import Auth  # noqa: PLC0415

    directory = options["state-dir"] or default_state_dir(os.environ)
    path = Path(directory).expanduser() / "m32net.sqlite"
    if not path.exists():
        raise CommandError(f"there is no server state in {directory}; name it with --state-dir")
    try:
        auth = Auth(open_settings(path, reactor=reactor), reactor)
        password = auth.reset_password(options["user"])
    except StoreError as reason:
        raise CommandError(str(reason)) from None
    print(f"The new password of {options['user']}: {password}")
    return defer.succeed(0)


COMMANDS: Final[Mapping[str, Command]] = {
    "listen": listen,
    "discover": discover,
    "devices": devices,
    "migrate": migrate,
    "passwd": passwd,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs a command, exits with its status."""
    options = Options()  # type: ignore[no-untyped-call]
    try:
        options.parseOptions(  # type: ignore[no-untyped-call]
            None if arguments is None else list(arguments)
        )
    except usage.UsageError as reason:
        print(f"m32net: {reason}; try `m32net --help`", file=sys.stderr)
        raise SystemExit(2) from None

    def start(reactor: Any) -> defer.Deferred[int]:
        steady_timers(reactor)
        return defer.maybeDeferred(COMMANDS[str(options.subCommand)], reactor, options.subOptions)

    def ended(status: int) -> None:
        raise SystemExit(status)

    def failed(failure: Any) -> None:
        failure.trap(CommandError)
        print(f"m32net: {failure.value}", file=sys.stderr)
        raise SystemExit(1)

    task.react(lambda reactor: start(reactor).addCallbacks(ended, failed))


if __name__ == "__main__":
    main()
