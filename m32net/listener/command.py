"""``m32net listen``: a listener at the command line that plays, records and measures.

Options in, a running :class:`~m32net.listener.session.Session` and its reports out.  Everything a
person can get wrong ends in one clear line and a status that is not 0.
"""

from __future__ import annotations

import getopt
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python import usage
from twisted.python.failure import Failure

from m32net.listener.address import AddressError, ServerAddress
from m32net.listener.outputs import Outputs
from m32net.listener.playback import PlaybackError, SoundCard
from m32net.listener.receiver import PortError, Receiver
from m32net.listener.recorder import RecordingError
from m32net.listener.report import Progress, json_line, status_line, summary_text
from m32net.listener.server_api import http_client
from m32net.listener.session import ListenerError, Session, Wishes
from m32net.listener.settings import Mix, MixError, load_book
from m32net.listener.thresholds import ThresholdError, choose
from protocols.control.messages import FRAME_MS, MAX_CHANNELS, SAMPLE_RATES

CODECS: Final = ("opus", "L16", "L24")
LAYOUTS: Final = ("bundle", "mono")
DEFAULT_PORT: Final = 5004
MAX_FORCE_DELAY_MS: Final = 10_000.0
_SWITCH_INTERVAL_S: Final = 0.0005


class ListenOptions(usage.Options):
    """Options of ``m32net listen URL``."""

    synopsis = "URL [options]"
    longdesc = (
        "Listens to a server. Without --play and --record it only measures. "
        "Environment: UDP_PORT, FORCE_DELAY_MS, JITTER_INTERPOLATE_MS, JITTER_DROP_MS."
    )
    optParameters: ClassVar[list[list[Any]]] = [
        ["udp-port", "p", None, "UDP port for audio, 0 for any free pair [UDP_PORT, or 5004]."],
        ["channels", "c", None, "Channels, as in 1,2,5-8. [default: all there are]"],
        ["codec", None, None, f"{', '.join(CODECS)}. [default: the server's]"],
        ["layout", None, None, f"{' or '.join(LAYOUTS)}. [default: the server's]"],
        ["frame-ms", None, None, "2.5, 5, 10 or 20. [default: the server's]"],
        ["sample-rate", None, None, "48000, 44100, 32000 or 24000. [default: the server's]"],
        ["record", None, None, "Record every channel as a track of this WAV file."],
        ["record-mix", None, None, "Record the stereo mix to this WAV file."],
        ["duration", "d", None, "Stop after so many seconds."],
        ["device", None, None, "Play on the output with this in its name."],
        ["mix", "m", None, "Mix file (JSON): a device's mixes, or one exported mix."],
        ["preset", None, None, "Use this preset of the mix file."],
        ["name", "n", None, "Name of this listener on the engineer's page."],
        ["interface", "i", "", "Use this local IPv4 address only."],
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        ["play", None, "Play the mix on the sound card."],
        ["json", None, "Print one JSON object a second and a summary."],
        ["once", None, "Do not come back after a failure: end with status 1."],
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As usual, but the address may stand before the options."""
        given = sys.argv[1:] if options is None else list(options)
        try:
            pairs, rest = getopt.gnu_getopt(given, self.shortOpt, self.longOpt)
        except getopt.GetoptError as error:
            raise usage.UsageError(str(error)) from None
        ordered: list[str] = []
        for name, value in pairs:
            takes = name.startswith("--") and f"{name[2:]}=" in self.longOpt
            takes = takes or f"{name[1:]}:" in self.shortOpt
            ordered += [name, value] if takes else [name]
        parse: Any = super().parseOptions  # untyped in Twisted
        parse([*ordered, "--", *rest])

    def parseArgs(self, *arguments: str) -> None:
        """The server's address, and nothing else."""
        if len(arguments) != 1:
            raise usage.UsageError("listen needs one URL, as http://192.168.1.10:8080/")
        try:
            self["address"] = ServerAddress.parse(arguments[0])
        except AddressError as error:
            raise usage.UsageError(str(error)) from None

    def postOptions(self) -> None:
        """Check every value here, so that nothing starts that cannot go on."""
        self["channels"] = _channels(self["channels"])
        self["codec"] = _choice("codec", self["codec"], CODECS)
        self["layout"] = _choice("layout", self["layout"], LAYOUTS)
        self["frame-ms"] = _number_of("frame-ms", self["frame-ms"], FRAME_MS)
        rate = _number_of("sample-rate", self["sample-rate"], SAMPLE_RATES)
        self["sample-rate"] = None if rate is None else int(rate)
        self["duration"] = _duration(self["duration"])
        if self["udp-port"] is not None:
            self["udp-port"] = _port("--udp-port", self["udp-port"])
        if self["preset"] is not None and self["mix"] is None:
            raise usage.UsageError("--preset needs --mix FILE, where it is")


class Environment:
    """What ``m32net listen`` takes from the environment (STR-24, STR-27).

    :raises usage.UsageError: a variable cannot be used.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        try:
            self.thresholds = choose(variables, None)
        except ThresholdError as error:
            raise usage.UsageError(str(error)) from None
        self.udp_port = _port("UDP_PORT", variables.get("UDP_PORT", "").strip() or DEFAULT_PORT)
        self.force_delay_ms = self._delay(variables.get("FORCE_DELAY_MS", "").strip() or "0")

    @staticmethod
    def _delay(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= MAX_FORCE_DELAY_MS:
            raise usage.UsageError(f"FORCE_DELAY_MS={text}: a number of ms up to 10000 is needed")
        return value


class Listening:
    """One run of the command.

    :param out: prints a line to standard output.
    :param note: prints a line for people, to standard error.
    """

    def __init__(
        self,
        reactor: Any,
        options: Mapping[str, Any],
        environment: Environment,
        *,
        random: Callable[[], float],
        seconds: Callable[[], float] = time.monotonic,
        http: Any = None,
        out: Callable[[str], object] = print,
        note: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
        terminal: bool = False,
    ) -> None:
        self.finished: Deferred[int] = Deferred()
        self._reactor = reactor
        self._options = options
        self._seconds = seconds
        self._out = out
        self._note = note
        self._terminal = terminal and not options["json"]
        self._line = ""
        self._status = 0
        self._timers: list[Any] = []
        mix = _mix_of(options)
        record, record_mix = options["record"], options["record-mix"]
        card = None
        if options["play"]:
            sys.setswitchinterval(_SWITCH_INTERVAL_S)  # the sound card's thread must not wait 5 ms
            card = SoundCard(options["device"])
        self.outputs = Outputs(
            record=None if record is None else Path(record),
            record_mix=None if record_mix is None else Path(record_mix),
            card=card,
            mix=mix,
        )
        self.outputs.check()
        port = options["udp-port"]
        receiver = Receiver(
            reactor,
            interface=options["interface"],
            port=environment.udp_port if port is None else port,
            outputs=self.outputs,
            wanted=options["channels"],
            thresholds=environment.thresholds,
            force_delay_ms=environment.force_delay_ms,
            failed=self._output_failed,
            ssrc=int(random() * 2**32) & 0xFFFF_FFFF,
            random=random,
        )
        self.session = Session(
            reactor,
            options["address"],
            Wishes(
                name=options["name"],
                channels=options["channels"],
                codec=options["codec"],
                layout=options["layout"],
                frame_ms=options["frame-ms"],
                sample_rate=options["sample-rate"],
                mix=mix,
                send_muted=record is not None,
                retry=not options["once"],
            ),
            receiver,
            http=http or http_client(reactor, options["interface"]),
            interface=options["interface"],
            environment=environment.variables,
            tell=self._say,
            random=random,
        )
        self.progress = Progress(self.session, seconds())

    def start(self) -> None:
        """Begin.

        :raises PortError: the UDP port cannot be used.
        """
        self.session.start()
        self.progress = Progress(self.session, self._seconds())
        self._timers = [self._reactor.callLater(1.0, self._tick)]
        if self._options["duration"] is not None:
            self._timers.append(self._reactor.callLater(self._options["duration"], self.stop))
        self.session.ended.addErrback(self._gave_up)

    def stop(self) -> None:
        """Leave, finish the recordings, print the summary, and be finished.  Once."""
        if self.finished.called:
            return
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        if self._options["json"] and self._seconds() > self.progress.reported_at:
            self._out(json_line(self.progress.take(self._seconds())))  # what is left of a second
        figures = self.session.receiver.figures()
        for error in self.session.stop():
            self._fail(str(error))
        self._clear_line()
        recorders = (self.outputs.tracks, self.outputs.stereo)
        recorded = [str(part) for one in recorders if one is not None for part in one.parts]
        summary = self.progress.summary(self._seconds(), figures, recorded)
        if self._options["json"]:
            self._out(json_line(summary))
        elif summary["packets"]:
            self._out(summary_text(summary))
        if not summary["packets"] and not self._status:
            self._fail("no audio was received")
        self.finished.callback(self._status)

    def _tick(self) -> None:
        self._timers[0] = self._reactor.callLater(1.0, self._tick)
        report = self.progress.take(self._seconds())
        if self._options["json"]:
            self._out(json_line(report))
        elif self._terminal:
            self._clear_line()
            self._line = status_line(report, shutil.get_terminal_size().columns - 1)
            sys.stderr.write(self._line)
            sys.stderr.flush()

    def _clear_line(self) -> None:
        if self._line:
            sys.stderr.write("\r" + " " * len(self._line) + "\r")
            sys.stderr.flush()
            self._line = ""

    def _say(self, text: str) -> None:
        self._clear_line()
        self._note(text)

    def _fail(self, text: str) -> None:
        self._status = 1
        self._say(f"m32net listen: {text}")

    def _output_failed(self, error: Exception) -> None:
        self._fail(str(error))
        self._reactor.callLater(0, self.stop)

    def _gave_up(self, failure: Failure) -> None:
        assert isinstance(failure.value, ListenerError)
        self._fail(failure.getErrorMessage())
        self.stop()


def run(reactor: Any, options: Mapping[str, Any]) -> Deferred[int]:
    """Listen until the duration is over or somebody stops it.

    :returns: fires with the exit status: 0, 1 for a failure, 2 for something that cannot be.
    """
    from random import SystemRandom  # noqa: PLC0415

    try:
        environment = Environment(os.environ)
        listening = Listening(
            reactor,
            options,
            environment,
            random=SystemRandom().random,
            terminal=sys.stderr.isatty(),
        )
        listening.start()
    except (usage.UsageError, MixError, PlaybackError, PortError, RecordingError) as error:
        print(f"m32net listen: {error}", file=sys.stderr)
        return succeed(2)
    reactor.addSystemEventTrigger("before", "shutdown", listening.stop)
    return listening.finished


def _mix_of(options: Mapping[str, Any]) -> Mix:
    if options["mix"] is None:
        return Mix()
    book = load_book(Path(options["mix"]))
    return book.current if options["preset"] is None else book.preset(options["preset"])


def _choice(name: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    for choice in choices:
        if choice.lower() == value.lower():
            return choice
    raise usage.UsageError(f"--{name} {value}: choose one of {', '.join(choices)}")


def _number_of(name: str, value: str | None, choices: tuple[float, ...]) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if number not in choices:
        named = ", ".join(f"{choice:g}" for choice in choices)
        raise usage.UsageError(f"--{name} {value}: choose one of {named}")
    return number


def _duration(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise usage.UsageError(f"--duration {value}: a number of seconds over 0 is needed")
    return seconds


def _port(name: str, value: Any) -> int:
    try:
        port = int(value)
    except ValueError:
        port = -1
    if port != 0 and not 1024 <= port <= 65_534:
        raise usage.UsageError(f"{name} {value}: a port from 1024 to 65534 is needed, or 0 for any")
    return port


def _channels(value: str | None) -> tuple[int, ...] | None:
    """``1,2,5-8`` as ids, in that order."""
    if value is None:
        return None
    found: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            low, high = 1, 0
        if not 1 <= low <= high <= MAX_CHANNELS:
            raise usage.UsageError(f"--channels {value}: {part.strip()!r} is none; use 1,2,5-8")
        found += range(low, high + 1)
    if len(set(found)) != len(found):
        raise usage.UsageError(f"--channels {value}: a channel is there twice")
    return tuple(found)
