"""STR-20, STR-24..28: packets to ears and files, in simulated time with a simulated sound card."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import soundfile
from twisted.internet.defer import Deferred
from twisted.trial import unittest

from m32net.listener import decode
from m32net.listener.decode import OpusUnavailable
from m32net.listener.outputs import Outputs
from m32net.listener.receiver import DISK_TIMEOUT_S, PortError
from m32net.listener.settings import ChannelMix, Master, Mix
from m32net.listener.thresholds import Thresholds
from protocols.control.messages import Stream
from protocols.rtp.extension import ntp64_from_unix_ns
from protocols.rtp.rtcp import ReceiverReport, SenderReport, parse_compound
from tests.m32net.listener.packets import SERVER, PacketSource
from tests.m32net.listener.rig import START_NS, FakeCard, Rig
from tests.m32net.listener.streams import noise, opus_payloads, pcm_payloads, stream, tones

MS = 1_000_000
PAN_LEFT = Mix((ChannelMix(1, pan=-1), ChannelMix(2, pan=1)), Master(limit=False))


def source(codec: str = "L24", signal: np.ndarray | None = None, **more: object) -> PacketSource:
    """Two groups of one channel each; five seconds that repeat without a seam."""
    announced = stream(codec, ((1,), (2,)), **more)
    if signal is None:
        signal = tones(240_000, 2)
        if codec != "opus":
            signal = (signal.astype(float) * 2**31).astype(np.int32)
    make = opus_payloads if codec == "opus" else lambda one: pcm_payloads(one, codec, 240)
    return PacketSource(announced, [make(signal[:, [n]]) for n in (0, 1)])


class LiveTest(unittest.TestCase):
    """Playing: continuous, in time, whatever the network does."""

    def play(
        self,
        seconds: float,
        *,
        codec: str = "L24",
        ppm: float = 0.0,
        jitter_ms: float = 0.0,
        loss: float = 0.0,
        stalls: tuple[tuple[float, float], ...] = (),
    ) -> tuple[Rig, np.ndarray]:
        """Play tones of 100 Hz (left) and 200 Hz (right)."""
        random = np.random.default_rng(1)
        card = FakeCard(ppm=ppm)
        rig = Rig(self.patch, Outputs(card=card, mix=PAN_LEFT))
        rig.receiver.start()
        packets = source(codec)
        rig.receiver.listen_to(packets.stream, SERVER[0])
        for number in range(round(seconds * 200)):
            at = number * 0.005
            delay = jitter_ms / 1000 * random.random()
            for start, length in stalls:
                if start <= at < start + length:
                    delay = start + length - at
            lost = frozenset(group for group in (0, 1) if random.random() < loss)
            arrival = START_NS + round((at + delay) * 1e9)
            rig.send(packets.datagrams(number, arrival, lost=lost))
        rig.run(seconds)
        self.addCleanup(rig.receiver.stop)
        return rig, card.sound()

    def assert_smooth(self, sound: np.ndarray, factor: float) -> None:
        """No step greater than so many times the tones' own slope, from the second second on.

        A join of two waves that do not fit (2.5 ms) may make it three times; a click makes it
        sixty times.
        """
        steps = np.abs(np.diff(sound[48_000:], axis=0)).max(axis=0)
        own = 0.25 * 2 * np.pi * np.array([100, 200]) / 48_000
        self.assertTrue((steps < factor * own).all(), steps / own)

    def test_channels_and_level(self) -> None:
        for codec in ("L24", "opus"):
            _, sound = self.play(3, codec=codec)
            part = sound[-96_000:] * np.hanning(96_000)[:, None]
            peaks = np.abs(np.fft.rfft(part, axis=0)).argmax(axis=0) / 2
            self.assertTrue((np.abs(peaks - [100, 200]) <= 1).all())
            self.assertApproximates(float(np.abs(sound[-96_000:]).max()), 0.25, 0.01)

    def test_steady_network(self) -> None:
        rig, sound = self.play(4)
        self.assert_smooth(sound, 1.05)
        figures = rig.receiver.figures()
        self.assertEqual((figures.underruns, figures.late, figures.concealed_ms), (0, 0, 0))
        self.assertLess(figures.buffer_ms, 10)

    def test_frames_in_parts(self) -> None:
        """Four packets of 1.25 ms come at once every 5 ms: held back for as long as that."""
        signal = (tones(240_000, 2).astype(float) * 2**31).astype(np.int32)
        announced = stream("L24", ((1, 2),), frame_ms=1.25)
        packets = PacketSource(announced, [pcm_payloads(signal, "L24", 60)], frame=60)
        card = FakeCard()
        rig = Rig(self.patch, Outputs(card=card, mix=PAN_LEFT))
        rig.receiver.start()
        self.addCleanup(rig.receiver.stop)
        rig.receiver.listen_to(announced, SERVER[0])
        for number in range(4 * 200 * 4):
            rig.send(packets.datagrams(number, START_NS + number // 4 * 5 * MS))
        rig.run(4)
        self.assert_smooth(card.sound(), 1.05)
        figures = rig.receiver.figures()
        self.assertEqual((figures.underruns, figures.late, figures.concealed_ms), (0, 0, 0))
        self.assertLess(figures.buffer_ms, 15)

    def test_drift_of_the_sound_card(self) -> None:
        """STR-28."""
        rig, sound = self.play(11, ppm=250)
        self.assert_smooth(sound, 1.05)
        figures = rig.receiver.figures()
        self.assertEqual(figures.underruns, 0)
        assert figures.drift_ppm is not None
        self.assertLess(abs(figures.drift_ppm + 250), 400)

    def test_jitter(self) -> None:
        rig, sound = self.play(5, jitter_ms=25)
        figures = rig.receiver.figures()
        self.assertGreater(figures.buffer_ms, 22)
        self.assertEqual(figures.underruns, 0)
        self.assert_smooth(sound, 3)

    def test_loss_is_concealed(self) -> None:
        """STR-25."""
        for codec in ("L24", "opus"):
            rig, sound = self.play(4, codec=codec, loss=0.05)
            figures = rig.receiver.figures()
            self.assertGreater(figures.concealed_ms, 100)
            self.assertEqual(figures.underruns, 0)
            self.assert_smooth(sound, 3)

    def test_one_stall_grows_the_buffer_for_a_while_only(self) -> None:
        """STR-26: 80 ms of nothing, then all at once."""
        rig, _ = self.play(2.5, stalls=((2.0, 0.08),))
        grown = rig.receiver.figures().buffer_ms
        self.assertGreater(grown, 60)
        self.assertEqual(rig.receiver.figures().underruns, 0)
        rig, sound = self.play(9, stalls=((2.0, 0.08),))
        figures = rig.receiver.figures()
        self.assertLess(figures.buffer_ms, grown - 12)
        self.assertIn("shrinking", figures.buffer_reason)
        self.assertEqual(figures.underruns, 0)
        self.assert_smooth(sound, 3)

    def test_stream_that_ends_fades_out_and_comes_back(self) -> None:
        rig, _ = self.play(3)
        rig.run(2.0)
        quiet = rig.card.sound()[-24_000:]
        self.assertEqual(float(np.abs(quiet).max()), 0.0)
        packets = source()
        for number in range(1000, 1600):
            arrival = rig.realtime_ns() + (number - 1000) * 5 * MS
            rig.send(packets.datagrams(number, arrival))
        rig.run(2.9)
        sound = rig.card.sound()
        self.assertGreater(float(np.abs(sound[-48_000:]).max()), 0.24)
        self.assert_smooth(sound, 3)

    def test_capture_to_ear(self) -> None:
        """From the sender report: capture, network, buffer, ring and sound card."""
        rig, _ = self.play(2)
        self.assertIsNone(rig.receiver.figures().capture_ms)
        rig.receiver.set_clock_offset(0.0)
        packets = source()
        # frame n is captured from n * 5 ms on, and here it arrives at that very moment
        report = SenderReport(1000, ntp64_from_unix_ns(START_NS), packets.first_timestamp, 0, 0)
        rig.sockets.on_rtcp((report,), START_NS)
        total = rig.receiver.figures().capture_ms
        assert total is not None
        self.assertGreater(total, 5 + 10)
        self.assertLess(total, 40)

    def test_new_rate_means_another_resampler_not_another_card(self) -> None:
        rig, _ = self.play(2)
        slower = source(rate=32_000, first_ssrc=5000, signal=np.zeros((4800, 2), np.int32))
        rig.receiver.listen_to(slower.stream, SERVER[0])
        self.assertEqual(rig.card.starts, 2)
        self.assertEqual(rig.receiver.outputs.live.playout.plan.sample_rate, 32_000)


class RecordingTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "take.wav"

    def rig(self, **more: object) -> Rig:
        rig = Rig(self.patch, Outputs(record=self.path), **more)
        rig.receiver.start()
        return rig

    def read(self) -> np.ndarray:
        return soundfile.read(self.path, dtype="int32", always_2d=True)[0]

    def test_bit_exact_in_the_order_asked_for(self) -> None:
        signal = noise(48_000, 2)
        packets = source(signal=signal)
        rig = self.rig(wanted=(2, 1))
        rig.receiver.listen_to(packets.stream, SERVER[0])
        random = np.random.default_rng(1)
        for number in range(200):
            late = round(random.random() * 50 * MS) if number else 0
            rig.send(packets.datagrams(number, START_NS + number * 5 * MS + late))
        rig.run(1.5)
        self.assertEqual(self.successResultOf(rig.receiver.stop()), [])
        self.assertTrue(np.array_equal(self.read(), signal[:, ::-1]))

    def test_frames_in_parts_are_frames(self) -> None:
        """5 ms in four packets of 1.25 ms at once, in any order, one of them lost: bit-exact."""
        signal = noise(48_000, 4)
        announced = stream("L24", ((1, 2), (3, 4)), frame_ms=1.25)
        halves = [pcm_payloads(signal[:, [n, n + 1]], "L24", 60) for n in (0, 2)]
        packets = PacketSource(announced, halves, frame=60)
        rig = self.rig()
        rig.receiver.listen_to(announced, SERVER[0])
        random = np.random.default_rng(1)
        lost = 402
        for frame in range(200):
            late = round(random.random() * 20 * MS) if frame else 0
            order = random.permutation(4) if frame else range(4)
            for number in [4 * frame + int(part) for part in order]:
                if number != lost:
                    moment = START_NS + frame * 5 * MS + late
                    rig.send(packets.datagrams(number, moment, send_ns=moment))
        rig.run(1.5)
        self.assertEqual(self.successResultOf(rig.receiver.stop()), [])
        recorded = self.read()
        gap = slice(60 * lost, 60 * lost + 60)
        join = slice(gap.stop, gap.stop + 120)  # a cross-fade of 2.5 ms
        self.assertEqual(len(recorded), len(signal))
        wrong = np.flatnonzero((recorded != signal).any(axis=1))
        self.assertTrue(set(wrong) <= set(range(gap.start, join.stop)), wrong[:3])
        self.assertEqual(rig.receiver.figures().totals.lost, 2)

    def test_packets_before_their_announcement(self) -> None:
        """RTP may overtake the ``stream`` message; nothing of it is lost."""
        signal = noise(9600, 2)
        packets = source(signal=signal)
        rig = self.rig()
        for number in range(40):
            rig.send(packets.datagrams(number, START_NS + number * 5 * MS))
        rig.run(0.05)
        rig.receiver.listen_to(packets.stream, SERVER[0])
        rig.run(0.3)
        rig.receiver.stop()
        self.assertTrue(np.array_equal(self.read(), signal))

    def test_break_between_two_streams_is_silence_of_its_length(self) -> None:
        """STR-23: after a reconnect with a new SSRC the recording is still in time."""
        first, second = source(), source(first_ssrc=9000)
        rig = self.rig()
        rig.receiver.listen_to(first.stream, SERVER[0])
        for number in range(100):
            rig.send(first.datagrams(number, START_NS + number * 5 * MS))
        rig.run(1.0)
        rig.receiver.listen_to(second.stream, SERVER[0])
        for number in range(100):
            rig.send(second.datagrams(number, START_NS + 2_000 * MS + number * 5 * MS))
        rig.run(2.0)
        rig.receiver.stop()
        self.assertEqual(len(self.read()), round(2.5 * 48_000))
        self.assertEqual(rig.receiver.figures().totals.packets, 400)

    def test_same_stream_again_goes_on(self) -> None:
        """STR-5: a reconnect within the grace keeps the streams, and so does the listener."""
        packets = source()
        rig = self.rig()
        rig.receiver.listen_to(packets.stream, SERVER[0])
        before = rig.receiver.reception
        again = Stream(**{**_fields(packets.stream), "sdp": "/other"})
        rig.receiver.listen_to(again, SERVER[0])
        self.assertIs(rig.receiver.reception, before)

    def test_full_disk_is_told_once_and_receiving_goes_on(self) -> None:
        packets = source()
        rig = self.rig()
        rig.receiver.listen_to(packets.stream, SERVER[0])

        class Full:
            def write(self, block: np.ndarray) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            def close(self) -> None:
                pass

        recorder = rig.receiver.outputs.tracks
        recorder._files._file.close()
        recorder._files._file = Full()
        for number in range(100):
            rig.send(packets.datagrams(number, START_NS + number * 5 * MS))
        rig.run(0.6)
        self.assertEqual(len(rig.errors), 1)
        self.assertIn("No space left", str(rig.errors[0]))
        self.assertEqual(rig.receiver.figures().totals.packets, 200)
        rig.receiver.stop()

    def test_hung_disk_does_not_keep_it_from_ending(self) -> None:
        """Waited for within a bound, and told in one line."""
        jobs: list[Deferred] = []

        def never(job: object) -> Deferred:
            jobs.append(Deferred())
            return jobs[-1]

        rig = Rig(self.patch, Outputs(record=self.path, on_disk=never))
        rig.receiver.start()
        packets = source()
        rig.receiver.listen_to(packets.stream, SERVER[0])
        for number in range(100):
            rig.send(packets.datagrams(number, START_NS + number * 5 * MS))
        rig.run(0.6)
        stopped = rig.receiver.stop()
        rig.clock.advance(DISK_TIMEOUT_S - 0.1)
        self.assertNoResult(stopped)
        rig.clock.advance(0.2)
        (error,) = self.successResultOf(stopped)
        self.assertIn("the disk has not answered for 10 s", str(error))
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_mix_and_tracks_together(self) -> None:
        """--record and --record-mix of one stream: neither spoils the other."""
        mix_path = self.path.with_name("mix.wav")
        mix = Mix((ChannelMix(1, pan=-1, volume=2), ChannelMix(2, mute=True)), PAN_LEFT.master)
        rig = Rig(self.patch, Outputs(record=self.path, record_mix=mix_path, mix=mix))
        rig.receiver.start()
        packets = source("opus")
        rig.receiver.listen_to(packets.stream, SERVER[0])
        for number in range(200):
            rig.send(packets.datagrams(number, START_NS + number * 5 * MS))
        rig.run(1.2)
        meters = rig.receiver.outputs.meters()
        self.assertEqual(self.successResultOf(rig.receiver.stop()), [])
        tracks = self.read()[24_000:] / 2**31
        self.assertTrue((np.abs(np.abs(tracks).max(axis=0) - 0.25) < 0.01).all())
        left, right = soundfile.read(mix_path)[0][24_000:].T
        self.assertApproximates(float(np.abs(left).max()), 0.5, 0.02)
        self.assertEqual(float(np.abs(right).max()), 0.0)
        assert meters is not None
        self.assertApproximates(meters.master_peak[0], -6.0, 0.5)

    def test_moving_a_fader_while_recording_the_mix(self) -> None:
        """STR-22: a new mix is ramped to, in the recording too."""
        rig = Rig(self.patch, Outputs(record_mix=self.path, mix=PAN_LEFT))
        rig.receiver.start()
        packets = source()
        rig.receiver.listen_to(packets.stream, SERVER[0])
        for number in range(200):
            rig.send(packets.datagrams(number, START_NS + number * 5 * MS))
        rig.run(0.5)
        silent = (ChannelMix(1, pan=-1, volume=0), ChannelMix(2, pan=1))
        rig.receiver.outputs.set_mix(Mix(silent, PAN_LEFT.master))
        rig.run(0.7)
        rig.receiver.stop()
        left = self.read()[:, 0] / 2**31
        self.assertGreater(np.abs(left[:20_000]).max(), 0.24)
        self.assertEqual(np.abs(left[-12_000:]).max(), 0)
        self.assertLess(np.abs(np.diff(left[4800:])).max(), 0.005)

    def test_missing_libopus_is_told(self) -> None:
        def missing() -> None:
            raise OpusUnavailable("Opus needs the library libopus; install it with: x")

        self.patch(decode, "_library", missing)
        rig = self.rig()
        rig.receiver.listen_to(source("L24").stream, SERVER[0])
        self.assertEqual(rig.errors, [])
        rig.receiver.listen_to(stream("opus", ((1,), (2,)), first_ssrc=7000), SERVER[0])
        self.assertIn("libopus", str(rig.errors[0]))
        rig.receiver.stop()

    def test_unwritable_file_is_told(self) -> None:
        rig = Rig(self.patch, Outputs(record=self.path / "no" / "x.wav"))
        rig.receiver.start()
        rig.receiver.listen_to(source().stream, SERVER[0])
        self.assertIn("cannot be written", str(rig.errors[0]))
        rig.receiver.stop()


class MeasuringTest(unittest.TestCase):
    """Without --play and --record: counted, not decoded."""

    def rig(self, frames: int = 200, lost: frozenset[int] = frozenset(), **more: object) -> Rig:
        rig = Rig(self.patch, **more)
        rig.receiver.start()
        packets = source(signal=np.zeros((4800, 2), np.int32))
        rig.receiver.listen_to(packets.stream, SERVER[0])
        for number in range(frames):
            one = lost if number % 10 == 5 else frozenset()
            arrival = START_NS + number * 5 * MS
            rig.send(packets.datagrams(number, arrival, lost=one, send_ns=arrival - 3 * MS))
        self.addCleanup(rig.receiver.stop)
        return rig

    def test_figures(self) -> None:
        rig = self.rig(lost=frozenset({1}))
        rig.receiver.set_clock_offset(1.5)
        rig.run(1.2)
        figures = rig.receiver.figures()
        self.assertEqual(rig.receiver.outputs.chains, ())
        self.assertEqual((figures.totals.expected, figures.totals.lost), (400, 20))
        self.assertApproximates(figures.latency_ms, 4.5, 0.01)
        self.assertLess(figures.buffer_ms, 21)
        self.assertNotEqual(figures.buffer_reason, "nothing received yet")

    def test_forced_delay(self) -> None:
        """STR-24: FORCE_DELAY_MS holds each packet back before it is looked at."""
        rig = self.rig(force_delay_ms=300)
        rig.receiver.set_clock_offset(0.0)
        rig.run(0.29)
        self.assertEqual(rig.receiver.figures().totals.packets, 0)
        rig.run(0.5)
        self.assertApproximates(rig.receiver.figures().totals.packets, 2 * 98, 6)
        rig.run(1.0)
        self.assertEqual(rig.receiver.figures().totals.packets, 400)
        self.assertApproximates(rig.receiver.figures().latency_ms, 303, 0.01)

    def test_too_much_held_back_is_counted(self) -> None:
        rig = self.rig(force_delay_ms=300)
        rig.receiver._held._limit = 100 * (12 + 16 + 720 + 256)
        rig.run(1.5)
        figures = rig.receiver.figures()
        self.assertGreater(figures.dropped, 0)
        self.assertEqual(figures.totals.packets + figures.dropped, 400)

    def test_receiver_reports_every_few_seconds(self) -> None:
        """STR-12: RTCP RR to the server's RTP port + 1, with some chance in the interval."""
        rig = self.rig(4000)
        rig.run(20, 0.01)
        self.assertIn(len(rig.sockets.sent), (3, 4, 5))
        data, address = rig.sockets.sent[0]
        self.assertEqual(address, (SERVER[0], 5005))
        report = parse_compound(data)[0]
        assert isinstance(report, ReceiverReport)
        self.assertEqual([block.ssrc for block in report.reports], [1000, 1001])

    def test_only_the_servers_packets(self) -> None:
        rig = self.rig()
        self.assertEqual(rig.sockets.only_from, ((SERVER[0], source().stream.rtp_port),))

    def test_thresholds_reach_the_chains(self) -> None:
        card = FakeCard()
        rig = Rig(self.patch, Outputs(card=card))
        rig.receiver.start()
        rig.receiver.listen_to(source().stream, SERVER[0])
        rig.receiver.set_thresholds(Thresholds(20, 40))
        self.assertEqual(rig.receiver.outputs.live.buffer._drop, 40 * 48)
        rig.receiver.stop()


class PortTest(unittest.TestCase):
    def test_busy_port_says_what_to_do(self) -> None:
        rig = Rig(self.patch, port=5004)
        rig.sockets.refusal = OSError(errno.EADDRINUSE, "Address already in use")
        error = self.assertRaises(PortError, rig.receiver.start)
        self.assertIn("5004", str(error))
        self.assertIn("--udp-port", str(error))

    def test_busy_port_may_be_another(self) -> None:
        rig = Rig(self.patch, port=5004, or_any=True)
        rig.sockets.refusal = OSError(errno.EADDRINUSE, "Address already in use")
        rig.receiver.start()
        self.assertEqual((rig.receiver.instead_of, rig.receiver.port), (5004, 50_000))
        rig = Rig(self.patch, port=5004, or_any=True)
        rig.receiver.start()
        self.assertEqual((rig.receiver.instead_of, rig.receiver.port), (None, 5004))

    def test_foreign_interface(self) -> None:
        rig = Rig(self.patch, interface="192.0.2.99")
        rig.sockets.refusal = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        self.assertIn("Cannot assign", str(self.assertRaises(PortError, rig.receiver.start)))


def _fields(value):
    return {name: getattr(value, name) for name in value.__struct_fields__}
