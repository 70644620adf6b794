"""STR-24: ``m32net listen``: options, environment, reports, and one clear line for each mistake."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.python import usage
from twisted.trial import unittest

from m32net.listener import command
from m32net.listener.command import Listening, run
from m32net.listener.depacketize import StreamPlan
from m32net.listener.figures import Figures
from m32net.listener.latency import LatencyMeter
from m32net.listener.life import Life
from m32net.listener.mixer import Mixer
from m32net.listener.move import Moved
from m32net.listener.options import Environment, ListenOptions
from m32net.listener.outputs import Outputs
from m32net.listener.reception import Totals
from m32net.listener.report import Progress, status_line, summary_text
from m32net.listener.session import ListenerError
from m32net.listener.settings import ChannelMix, Mix, MixBook, save_book
from m32net.listener.thresholds import Thresholds
from m32net.listener.voice import Voice
from tests.m32net.listener.streams import stream
from tests.support.certificate import self_signed


def parsed(*arguments: str) -> ListenOptions:
    options = ListenOptions()
    options.parseOptions(list(arguments))
    return options


class OptionsTest(unittest.TestCase):
    def test_address_before_or_after_the_options(self) -> None:
        for arguments in (
            ("http://host:1/", "--codec", "L24", "-p", "6000", "--json"),
            ("--codec=L24", "-p6000", "--json", "http://host:1/"),
            ("--json", "http://host:1/", "--codec", "l24", "--udp-port=6000"),
        ):
            options = parsed(*arguments)
            self.assertEqual(options["address"].http, "http://host:1")
            self.assertEqual(
                (options["codec"], options["udp-port"], options["json"]), ("L24", 6000, 1)
            )

    def test_values(self) -> None:
        options = parsed(
            "host", "--channels=1,2,5-8", "--frame-ms=2.5", "--sample-rate=44100",
            "--duration=1.5", "--layout=mono", "--udp-port=0",
        )  # fmt: skip
        self.assertEqual(options["channels"], (1, 2, 5, 6, 7, 8))
        self.assertEqual((options["frame-ms"], options["sample-rate"]), (2.5, 44_100))
        self.assertEqual(
            (options["duration"], options["layout"], options["udp-port"]), (1.5, "mono", 0)
        )

    def test_name_and_pin_as_long_as_they_may_be(self) -> None:
        options = parsed("host", "--name=" + "ä" * 256, "--pin=" + "1" * 16)
        self.assertEqual((len(options["name"]), len(options["pin"])), (256, 16))

    def test_ca(self) -> None:
        """CON-32: one file may hold several certificates, and text between them."""
        path = Path(self.mktemp())
        path.write_bytes(b"the hall's\n" + self_signed("a") + b"and the bus's\n" + self_signed("b"))
        trust = parsed("host", f"--ca={path}")["ca"]
        self.assertEqual(trust.file, str(path))
        self.assertEqual(len(trust.root._caCerts), 2)

    def test_mistakes_are_named(self) -> None:
        for arguments, word in (
            ((), "URL"),
            (("a", "b"), "URL"),
            (("ftp://x",), "ftp"),
            (("host", "--codec=mp3"), "mp3"),
            (("host", "--layout=x"), "bundle"),
            (("host", "--frame-ms=7"), "2.5, 5, 10, 20"),
            (("host", "--sample-rate=x"), "48000"),
            (("host", "--channels=1,1"), "twice"),
            (("host", "--channels=0"), "'0'"),
            (("host", "--channels=5-2"), "'5-2'"),
            (("host", "--channels=1-65"), "'1-65'"),
            (("host", "--udp-port=80"), "1024"),
            (("host", "--udp-port=x"), "1024"),
            (("host", "--duration=-1"), "--duration"),
            (("host", "--preset=x"), "--mix"),
            (("ht!tp",), "no host of that name"),
            (("host", "--name=" + "x" * 257), "257 characters; 256 fit"),
            (("host", "--pin=" + "1" * 17), "17 characters; 16 fit"),
            (("host", "--ca=/nonexistent/ca.pem"), "/nonexistent/ca.pem: No such file"),
            (("host", f"--ca={__file__}"), "there is no certificate in it"),
            (("host", "--nonsense"), "nonsense"),
        ):
            with self.subTest(arguments):
                error = self.assertRaises(usage.UsageError, parsed, *arguments)
                self.assertIn(word, str(error))
                self.assertNotIn("\n", str(error))


class EnvironmentTest(unittest.TestCase):
    """STR-24, STR-27."""

    def test_defaults(self) -> None:
        environment = Environment({})
        self.assertEqual((environment.udp_port, environment.force_delay_ms), (None, 0.0))
        self.assertEqual(environment.thresholds, Thresholds(100, 200))

    def test_values(self) -> None:
        environment = Environment(
            {"UDP_PORT": "6000", "FORCE_DELAY_MS": "12.5", "JITTER_INTERPOLATE_MS": "10"}
        )
        self.assertEqual((environment.udp_port, environment.force_delay_ms), (6000, 12.5))
        self.assertEqual(environment.thresholds, Thresholds(10, 200))

    def test_mistakes_are_named(self) -> None:
        for variables, word in (
            ({"UDP_PORT": "x"}, "UDP_PORT"),
            ({"FORCE_DELAY_MS": "-1"}, "FORCE_DELAY_MS"),
            ({"FORCE_DELAY_MS": "nan"}, "FORCE_DELAY_MS"),
            ({"FORCE_DELAY_MS": "1e999"}, "from 0 to 10000 is needed"),
            ({"FORCE_DELAY_MS": "10001"}, "from 0 to 10000 is needed"),
            ({"FORCE_DELAY_MS": "9" * 100_000}, "from 0 to 10000 is needed"),
            ({"FORCE_DELAY_MS": "a\nb\n" * 1000}, "from 0 to 10000 is needed"),
            ({"UDP_PORT": "9" * 100_000}, "UDP_PORT"),
            ({"JITTER_DROP_MS": "x"}, "JITTER_DROP_MS"),
        ):
            line = str(self.assertRaises(usage.UsageError, Environment, variables))
            self.assertIn(word, line)
            self.assertNotIn("\n", line)
            self.assertLess(len(line), 160)


class FakeReceiver:
    def __init__(self, reactor, **options: Any) -> None:
        self.options = options
        self.outputs: Outputs = options["outputs"]
        self.latency = LatencyMeter()
        self.stream = stream()
        self.now = Figures()
        self.instead_of: int | None = None
        self.port = 50_000

    def figures(self) -> Figures:
        return self.now


class FakeSession:
    """A session that streams from the start; keeps how it was made."""

    def __init__(self, means, address, receiver) -> None:
        self.wishes = None if means is None else means.wishes
        self.means = means
        self.address = address
        self.receiver = receiver
        self.moves: list[Moved] = []
        self.state = Life.STREAMING
        self.client_id = "me"
        self.reconnects = 0
        self.qos_posted = 2
        self.round_trip_ms = 1.0
        self.clock_offset_ms = 0.5
        self.errors: list[Exception] = []
        self.stopping: Deferred[list[Exception]] | None = None
        self.ended: Deferred[None] = Deferred()

    def start(self) -> None:
        self.means.tell("connected")

    def migration(self) -> dict[str, Any] | None:
        return None

    def stop(self) -> Deferred[list[Exception]]:
        return self.stopping or succeed(self.errors)


class ListeningTest(unittest.SynchronousTestCase):
    def begin(self, *arguments: str, environment: dict | None = None) -> Listening:
        self.patch(command, "Receiver", FakeReceiver)
        self.patch(command, "Session", FakeSession)
        self.reactor = MemoryReactorClock()
        self.out: list[str] = []
        self.notes: list[str] = []
        listening = Listening(
            self.reactor,
            parsed("host", *arguments),
            Environment(environment or {}),
            random=lambda: 0.5,
            seconds=self.reactor.seconds,
            out=self.out.append,
            note=self.notes.append,
        )
        listening.start()
        return listening

    def receive(self, listening: Listening, packets: int, expected: int) -> None:
        totals = Totals(packets=packets, expected=expected, octets=packets * 1000)
        listening.session.receiver.now = Figures(
            totals=totals, jitter_ms=1.25, buffer_ms=12.0, buffer_reason="jitter is 2.0 ms"
        )

    def test_json_lines_and_summary(self) -> None:
        listening = self.begin("--json", "--duration=3")
        latency = listening.session.receiver.latency
        latency.offset_ns = 0
        for second in (1, 2, 3):
            latency.received(5_000_000, 0)
            self.receive(listening, 198 * second, 200 * second)
            self.reactor.advance(1)
        self.assertEqual(self.successResultOf(listening.finished), 0)
        lines = [json.loads(line) for line in self.out]
        self.assertEqual([line["type"] for line in lines], ["progress"] * 3 + ["summary"])
        one = lines[1]
        self.assertEqual((one["packets"], one["expected"], one["lost"]), (198, 200, 2))
        self.assertEqual((one["loss"], one["mbps"], one["state"]), (0.01, 1.584, "streaming"))
        self.assertEqual((one["latency_p50_ms"], one["jitter_ms"]), (5.0, 1.25))
        self.assertEqual((one["buffer_ms"], one["buffer_reason"]), (12.0, "jitter is 2.0 ms"))
        self.assertEqual((one["codec"], one["channels"]), ("L24", 5))
        total = lines[-1]
        self.assertEqual((total["packets"], total["lost"], total["bytes"]), (594, 6, 594_000))
        self.assertEqual((total["latency_p99_ms"], total["duration_s"]), (5.0, 3.0))
        self.assertEqual(self.notes, ["connected"])

    def test_options_reach_session_and_receiver(self) -> None:
        listening = self.begin(
            "--channels=3,1", "--codec=L16", "--layout=mono", "--frame-ms=10", "--name=Anna",
            "--sample-rate=32000", "--once", "--interface=127.0.0.1",
            environment={"UDP_PORT": "6000", "FORCE_DELAY_MS": "20"},
        )  # fmt: skip
        wishes = listening.session.wishes
        self.assertEqual((wishes.channels, wishes.codec, wishes.layout), ((3, 1), "L16", "mono"))
        self.assertEqual((wishes.frame_ms, wishes.sample_rate, wishes.name), (10, 32_000, "Anna"))
        self.assertFalse(wishes.retry or wishes.send_muted)
        options = listening.session.receiver.options
        self.assertEqual((options["port"], options["force_delay_ms"]), (6000, 20.0))
        self.assertEqual((options["wanted"], options["interface"]), ((3, 1), "127.0.0.1"))

    def test_option_goes_before_environment(self) -> None:
        listening = self.begin("--udp-port=0", environment={"UDP_PORT": "6000"})
        options = listening.session.receiver.options
        self.assertEqual((options["port"], options["or_any"]), (0, False))

    def test_only_the_usual_port_may_be_another(self) -> None:
        for arguments, environment, expected in (
            ((), {}, (5004, True)),
            (("--udp-port=5004",), {}, (5004, False)),
            ((), {"UDP_PORT": "5004"}, (5004, False)),
        ):
            options = self.begin(*arguments, environment=environment).session.receiver.options
            self.assertEqual((options["port"], options["or_any"]), expected)

    def test_another_port_is_said(self) -> None:
        listening = self.begin()
        listening.session.receiver.instead_of = 5004
        self.notes.clear()
        listening.start()
        said = "UDP port 5004 is in use here; receiving on 50000 (--udp-port chooses another)"
        self.assertEqual(self.notes, ["connected", said])

    def test_mix_and_preset(self) -> None:
        path = Path(self.mktemp())
        quiet = Mix((ChannelMix(1, volume=0.1),))
        save_book(MixBook().save_preset("quiet", quiet), path)
        listening = self.begin(f"--mix={path}", "--preset=quiet", "--record=x.wav")
        self.assertEqual(listening.outputs.mix, quiet)
        self.assertTrue(listening.session.wishes.send_muted)

    def test_nothing_received_is_a_failure(self) -> None:
        listening = self.begin("--duration=1")
        self.reactor.advance(1)
        self.assertEqual(self.successResultOf(listening.finished), 1)
        self.assertIn("no audio was received", self.notes[-1])

    def test_giving_up_is_a_failure(self) -> None:
        listening = self.begin("--once")
        self.receive(listening, 1, 1)
        listening.session.ended.errback(ListenerError("the server is gone"))
        self.assertEqual(self.successResultOf(listening.finished), 1)
        self.assertIn("m32net listen: the server is gone", self.notes)

    def test_failing_output_ends_it(self) -> None:
        listening = self.begin()
        self.receive(listening, 1, 1)
        listening.session.receiver.options["failed"](OSError("the disk is full"))
        self.reactor.advance(0)
        self.assertEqual(self.successResultOf(listening.finished), 1)
        self.assertIn("m32net listen: the disk is full", self.notes)

    def test_recording_that_could_not_be_finished(self) -> None:
        listening = self.begin()
        self.receive(listening, 1, 1)
        listening.session.errors = [OSError("half of it is missing")]
        listening.stop()
        self.assertEqual(self.successResultOf(listening.finished), 1)

    def test_finished_when_the_session_is(self) -> None:
        """The reactor waits with its shutdown until bye is out and the recordings are done."""
        listening = self.begin()
        self.receive(listening, 1, 1)
        stopping = listening.session.stopping = Deferred()
        left = listening.stop()
        self.assertIs(listening.stop(), left)
        self.assertNoResult(left)
        self.assertNoResult(listening.finished)
        stopping.callback([OSError("half of it is missing")])
        self.assertEqual(self.successResultOf(listening.finished), 1)
        self.successResultOf(left)
        self.assertIn("m32net listen: half of it is missing", self.notes)

    def test_stopping_twice(self) -> None:
        listening = self.begin()
        self.receive(listening, 1, 1)
        listening.stop()
        listening.stop()
        self.assertEqual(len(self.out), 1)  # the summary
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class RunTest(unittest.SynchronousTestCase):
    """What cannot be is one line on standard error and status 2."""

    def setUp(self) -> None:
        self.errors = io.StringIO()
        self.patch(sys, "stderr", self.errors)
        self.patch(os, "environ", {})

    def status(self, *arguments: str) -> int:
        return self.successResultOf(run(MemoryReactorClock(), parsed("127.0.0.1:1", *arguments)))

    def test_unreadable_mix(self) -> None:
        self.assertEqual(self.status("--mix=/nonexistent/mix.json"), 2)
        self.assertIn("/nonexistent/mix.json", self.errors.getvalue())

    def test_recording_that_cannot_be_made(self) -> None:
        self.assertEqual(self.status("--record=/nonexistent/take.wav"), 2)
        self.assertIn("there is no directory /nonexistent", self.errors.getvalue())

    def test_bad_environment(self) -> None:
        os.environ["FORCE_DELAY_MS"] = "soon"
        self.assertEqual(self.status(), 2)
        self.assertIn("FORCE_DELAY_MS=soon", self.errors.getvalue())

    def test_busy_port(self) -> None:
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as busy:
            busy.bind(("127.0.0.1", 0))
            port = busy.getsockname()[1]
            self.assertEqual(self.status(f"--udp-port={port}", "--interface=127.0.0.1"), 2)
        self.assertIn(f"{port}", self.errors.getvalue())
        self.assertEqual(self.errors.getvalue().count("\n"), 1)

    def test_foreign_interface(self) -> None:
        self.assertEqual(self.status("--udp-port=0", "--interface=192.0.2.77"), 2)
        self.assertIn("m32net listen: ", self.errors.getvalue())


class ReportTest(unittest.TestCase):
    def test_lines_for_people(self) -> None:
        receiver = FakeReceiver(None, outputs=Outputs())
        session = FakeSession(None, None, receiver)
        progress = Progress(session, 0.0)
        receiver.now = Figures(
            Totals(198, 200, octets=10_000), 0.5, buffer_ms=7.0, buffer_reason="x"
        )
        report = progress.take(1.0)
        line = status_line(report, 200)
        self.assertIn("loss 1.00 %", line)
        self.assertIn("buffer 7 ms (x)", line)
        self.assertEqual(len(status_line(report, 20)), 20)
        self.assertIn("waiting", status_line({**report, "state": "waiting"}, 80))
        text = summary_text(progress.summary(2.0, receiver.now, ["take.wav"]))
        self.assertIn("198 packets, 2 lost (1.000 %)", text)
        self.assertIn("recorded take.wav", text)

    def test_moves_are_shown(self) -> None:
        """CON-51: under way, and in the summary with what became of the recording."""
        receiver = FakeReceiver(None, outputs=Outputs())
        session = FakeSession(None, "http://old:1/", receiver)
        session.state = Life.MOVING
        under_way = {"to": "new:2", "step": "filling", "attempts": 1, "in_s": None}
        session.migration = lambda: under_way
        progress = Progress(session, 0.0)
        report = progress.take(1.0)
        self.assertEqual((report["server"], report["migration"]), ("http://old:1/", under_way))
        self.assertIn("moving to new:2: filling", status_line(report, 200))
        session.moves = [Moved("http://old:1/", "http://new:2/", 12.25, 31.5, 2, 0.99987)]
        summary = progress.summary(20.0, receiver.now, ["take.wav"])
        one = {"from": "http://old:1/", "to": "http://new:2/", "at_s": 12.25, "took_s": 31.5}
        self.assertEqual(summary["moves"], [{**one, "attempts": 2, "alike": 1.0}])
        told = "moved to http://new:2/ at 12.2 s by a cross-fade of 20 ms; the recording goes on"
        self.assertIn(told, summary_text(summary))
        summary["recorded"] = []
        self.assertNotIn("recording", summary_text(summary))

    def test_meters_are_shown_where_something_is_mixed(self) -> None:
        receiver = FakeReceiver(None, outputs=Outputs())
        receiver.outputs.voice = Voice(StreamPlan.of(stream()))
        receiver.outputs.voice.playing = Mixer((1,), 48_000)
        report = Progress(FakeSession(None, None, receiver), 0.0).take(1.0)
        self.assertEqual(report["master_peak_db"], (-120.0, -120.0))
        self.assertNotIn("underruns", report)
