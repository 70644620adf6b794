"""``m32net listen``: a listener at the command line that plays, records and measures.

Options in, a running :class:`~m32net.listener.session.Session` and its reports out.  Everything a
person can get wrong ends in one clear line and a status that is not 0.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python import usage
from twisted.python.failure import Failure

from m32net.listener.disk import DiskThread
from m32net.listener.figures import Figures
from m32net.listener.link import Means, Wishes
from m32net.listener.options import DEFAULT_PORT, Environment
from m32net.listener.outputs import Outputs
from m32net.listener.playback import PlaybackError, SoundCard
from m32net.listener.receiver import PortError, Receiver
from m32net.listener.recorder import RecordingError
from m32net.listener.report import Progress, json_line, status_line, summary_text
from m32net.listener.server_api import http_client
from m32net.listener.session import ListenerError, Session
from m32net.listener.settings import Mix, MixError, load_book
from m32net.printable import printable

_SWITCH_INTERVAL_S: Final = 0.0005


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
        self._leaving: Deferred[None] | None = None
        mix = _mix_of(options)
        self.outputs = _outputs(reactor, options, mix)
        self.outputs.check()
        receiver = Receiver(
            reactor,
            interface=options["interface"],
            **_port_of(options, environment),
            outputs=self.outputs,
            wanted=options["channels"],
            thresholds=environment.thresholds,
            force_delay_ms=environment.force_delay_ms,
            failed=self._output_failed,
            ssrc=int(random() * 2**32) & 0xFFFF_FFFF,
            random=random,
        )
        trust = options["ca"]
        means = Means(
            reactor,
            http or http_client(reactor, options["interface"], trust),
            _wishes(options, mix),
            interface=options["interface"],
            trust=trust,
            environment=environment.variables,
            tell=self._say,
            random=random,
        )
        self.session = Session(means, options["address"], receiver)
        self.progress = Progress(self.session, seconds())

    def start(self) -> None:
        """Begin.

        :raises PortError: the UDP port cannot be used.
        """
        self.session.start()
        receiver = self.session.receiver
        if receiver.instead_of is not None:
            self._say(
                f"UDP port {receiver.instead_of} is in use here; receiving on {receiver.port} "
                "(--udp-port chooses another)"
            )
        self.progress = Progress(self.session, self._seconds())
        self._timers = [self._reactor.callLater(1.0, self._tick)]
        if self._options["duration"] is not None:
            self._timers.append(self._reactor.callLater(self._options["duration"], self.stop))
        self.session.ended.addErrback(self._gave_up)

    def stop(self) -> Deferred[None]:
        """Leave, finish the recordings, print the summary, and be finished.  Once.

        :returns: fires when that is done; every call gives the same.
        """
        if self._leaving is None:
            self._leaving = self._leave()
        return self._leaving

    def _leave(self) -> Deferred[None]:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        now = self._seconds()
        if self._options["json"] and now > self.progress.reported_at:
            self._out(json_line(self.progress.take(now)))  # what is left of a second
        figures = self.session.receiver.figures()
        stopped = self.session.stop()
        stopped.addCallback(lambda errors: self._sum_up(errors, figures, now))
        return stopped.addCallbacks(self.finished.callback, self.finished.errback)

    def _sum_up(self, errors: list[Exception], figures: Figures, now: float) -> int:
        for error in errors:
            self._fail(str(error))
        self._clear_line()
        recorders = (self.outputs.tracks, self.outputs.stereo)
        recorded = [str(part) for one in recorders if one is not None for part in one.parts]
        summary = self.progress.summary(now, figures, recorded)
        if self._options["json"]:
            self._out(json_line(summary))
        elif summary["packets"]:
            self._out(summary_text(summary))
        if not summary["packets"] and not self._status:
            self._fail("no audio was received")
        return self._status

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
        self._note(printable(text))

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


def _port_of(options: Mapping[str, Any], environment: Environment) -> dict[str, Any]:
    """The port asked for; if none was, the usual one, or any where that is taken."""
    asked = (options["udp-port"], environment.udp_port)
    port = next((one for one in asked if one is not None), None)
    return {"port": DEFAULT_PORT if port is None else port, "or_any": port is None}


def _outputs(reactor: Any, options: Mapping[str, Any], mix: Mix) -> Outputs:
    record, record_mix = options["record"], options["record-mix"]
    card = None
    if options["play"]:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)  # the sound card's thread must not wait 5 ms
        card = SoundCard(options["device"])
    return Outputs(
        record=None if record is None else Path(record),
        record_mix=None if record_mix is None else Path(record_mix),
        card=card,
        mix=mix,
        on_disk=DiskThread(reactor),
    )


def _wishes(options: Mapping[str, Any], mix: Mix) -> Wishes:
    return Wishes(
        name=options["name"],
        channels=options["channels"],
        codec=options["codec"],
        layout=options["layout"],
        frame_ms=options["frame-ms"],
        sample_rate=options["sample-rate"],
        pin=options["pin"],
        mix=mix,
        send_muted=options["record"] is not None,
        retry=not options["once"],
    )


def _mix_of(options: Mapping[str, Any]) -> Mix:
    if options["mix"] is None:
        return Mix()
    book = load_book(Path(options["mix"]))
    return book.current if options["preset"] is None else book.preset(options["preset"])
