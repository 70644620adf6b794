"""CON-51: from one server's stream to another's, in simulated time: no gap, no click."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from twisted.trial import unittest

from m32net.listener import decode
from m32net.listener.decode import OpusUnavailable
from m32net.listener.flow import FILL_S
from m32net.listener.latency import LatencyMeter
from m32net.listener.outputs import Outputs
from m32net.listener.settings import ChannelMix, Master, Mix
from protocols.rtp.rtcp import ReceiverReport, parse_compound
from tests.m32net.listener.packets import PacketSource
from tests.m32net.listener.rig import START_NS, FakeCard, Rig
from tests.m32net.listener.streams import noise, opus_payloads, pcm_payloads, stream

OLD, NEW = ("192.0.2.1", 5004), ("192.0.2.2", 6004)
LEFT = Mix((ChannelMix(1, pan=-1), ChannelMix(2, pan=1)), Master(limit=False))
RATE = 48_000
FRAME = 240
LONG_S = 4.5


def sine(seconds: float, hertz: float, phase: float = 0.0, rate: int = RATE) -> np.ndarray:
    """Two columns of half of full scale, as int32."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * time + phase)
    return np.repeat((wave * 2**31).astype(np.int32)[:, None], 2, axis=1)


class Server:
    """What one server sends."""

    def __init__(
        self,
        signal: np.ndarray,
        address: tuple[str, int],
        *,
        codec: str = "L24",
        first_ssrc: int = 1000,
        rate: int = RATE,
        frame_ms: float = 5.0,
        groups: tuple[tuple[int, ...], ...] = ((1,), (2,)),
    ) -> None:
        self.address = address
        self.frame_s = frame_ms / 1000
        frame = round(rate * self.frame_s)
        self.stream = stream(
            codec, groups, rate=rate, frame_ms=frame_ms, rtp_port=address[1], first_ssrc=first_ssrc
        )
        columns = [[one - 1 for one in group] for group in groups]
        if codec == "opus":
            floats = (signal / 2**31).astype(np.float32)
            payloads = [opus_payloads(floats[:, one], frame) for one in columns]
        else:
            payloads = [pcm_payloads(signal[:, one], codec, frame) for one in columns]
        self.packets = PacketSource(self.stream, payloads, frame, first_ssrc * 7919, first_ssrc)
        self.frames = len(payloads[0])

    def send(self, rig: Rig, start_s: float, end_s: float, *, delay_s: float = 0.0) -> None:
        """Frame n at ``n`` frames after the beginning, for as long as it lasts."""
        for number in range(self.frames):
            at = number * self.frame_s
            if start_s <= at < end_s:
                arrival = START_NS + round((at + delay_s) * 1e9)
                rig.send(self.packets.datagrams(number, arrival, address=self.address))


class MovingCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.tracks, self.mix = directory / "tracks.wav", directory / "mix.wav"
        self.moved: list[float] = []

    def rig(self, *, record: bool = False, play: bool = False, **more: object) -> Rig:
        outputs = Outputs(
            record=self.tracks if record else None,
            record_mix=self.mix if record else None,
            card=FakeCard(**more) if play else None,
            mix=LEFT,
        )
        rig = Rig(self.patch, outputs)
        rig.receiver.start()
        self.addCleanup(rig.receiver.stop)
        return rig

    def follow(self, rig: Rig, server: Server) -> None:
        rig.receiver.follow(
            server.stream,
            server.address[0],
            LatencyMeter(),
            lambda: self.moved.append(rig.clock.seconds()),
        )

    def move(
        self, rig: Rig, old: Server, new: Server, *, at_s: float = 2.0, seconds: float = LONG_S
    ) -> None:
        """Listen to the old one; the new one is announced after ``at_s``."""
        rig.receiver.listen_to(old.stream, old.address[0])
        rig.run(at_s)
        self.follow(rig, new)
        rig.run(seconds - at_s)

    def heard(self, rig: Rig) -> np.ndarray:
        """What the sound card put out of the left channel from half a second on."""
        return rig.card.sound()[24_000:, 0]

    def recorded(self, rig: Rig) -> tuple[np.ndarray, np.ndarray]:
        self.assertEqual(self.successResultOf(rig.receiver.stop()), [])
        tracks = soundfile.read(self.tracks, always_2d=True)[0]
        return tracks, soundfile.read(self.mix, always_2d=True)[0]

    def assert_continuous(self, sound: np.ndarray, hertz: float, factor: float) -> None:
        """No 2 ms of silence, and no step that many times as great as the greatest of the sine."""
        sound = sound if sound.ndim == 1 else sound[:, 0]
        own = 0.5 * 2 * np.pi * hertz / RATE
        self.assertLess(np.abs(np.diff(sound)).max(), factor * own)
        loud = np.flatnonzero(np.abs(sound) > 0.02)
        self.assertLess(np.diff(loud).max(), 96)


class ListeningOnTest(MovingCase):
    """The sound card hears no gap."""

    def test_a_sine_goes_on_as_a_sine(self) -> None:
        """Whatever the phase of the other server's, and whatever its delay."""
        for phase, delay_s in ((0.0, 0.0), (1.5, 0.008), (3.1, 0.03), (5.0, 0.002)):
            rig = self.rig(play=True)
            old, new = (
                Server(sine(LONG_S, 440), OLD),
                Server(sine(LONG_S, 440, phase), NEW, first_ssrc=9000),
            )
            old.send(rig, 0, LONG_S)
            new.send(rig, 1.5, LONG_S, delay_s=delay_s)
            self.move(rig, old, new)
            self.assertEqual(len(self.moved), 1)
            self.assertTrue(2 + FILL_S <= self.moved.pop() < 2 + FILL_S + 0.2)
            sound = self.heard(rig)
            self.assert_continuous(sound, 440, 1.05)
            level = np.sqrt(np.convolve(sound**2, np.ones(960) / 960, "valid"))
            self.assertLess(np.abs(20 * np.log10(level / np.median(level))).max(), 0.5)
            self.assertEqual(rig.receiver.figures().underruns, 0)

    def test_two_sounds_that_have_nothing_in_common(self) -> None:
        rig = self.rig(play=True)
        old, new = Server(sine(LONG_S, 440), OLD), Server(sine(LONG_S, 1000), NEW, first_ssrc=9000)
        old.send(rig, 0, LONG_S)
        new.send(rig, 2, LONG_S)
        self.move(rig, old, new)
        self.assert_continuous(self.heard(rig), 1000, 1.45)
        tail = self.heard(rig)[-RATE:]
        peak = np.abs(np.fft.rfft(tail * np.hanning(RATE))).argmax()
        self.assertApproximates(int(peak), 1000, 5)  # the ring has its level back by then, nearly

    def test_other_codec_rate_frames_and_bundles(self) -> None:
        for codec, rate, frame_ms, groups in (
            ("opus", 48_000, 5, ((1, 2),)),
            ("L16", 32_000, 20, ((2, 1),)),
            ("L24", 44_100, 10, ((1,), (2,))),
            ("L24", 48_000, 2.5, ((2,), (1,))),
        ):
            rig = self.rig(play=True)
            old = Server(sine(LONG_S, 200), OLD)
            signal = sine(LONG_S, 200, 2.0, rate)
            new = Server(
                signal, NEW, codec=codec, rate=rate, frame_ms=frame_ms, groups=groups,
                first_ssrc=9000,
            )  # fmt: skip
            old.send(rig, 0, LONG_S)
            new.send(rig, 2, LONG_S)
            self.move(rig, old, new)
            self.assertEqual(len(self.moved), 1, codec)
            self.moved.clear()
            self.assert_continuous(self.heard(rig), 200, 1.2)
            figures = rig.receiver.figures()
            self.assertEqual((figures.underruns, figures.concealed_ms), (0, 0))
            self.assertEqual(rig.card.starts, 1)

    def test_same_address_other_sources(self) -> None:
        """A successor on the same machine and port; its SSRCs tell it from the old one."""
        rig = self.rig(play=True)
        old, new = (
            Server(sine(LONG_S, 440), OLD),
            Server(sine(LONG_S, 440, 1.0), OLD, first_ssrc=9000),
        )
        old.send(rig, 0, LONG_S)
        new.send(rig, 1.9, LONG_S)
        self.move(rig, old, new)
        self.assertEqual(len(self.moved), 1)
        self.assert_continuous(self.heard(rig), 440, 1.05)

    def test_same_sources_other_address(self) -> None:
        rig = self.rig(play=True)
        old, new = Server(sine(LONG_S, 440), OLD), Server(sine(LONG_S, 440, 1.0), NEW)
        old.send(rig, 0, LONG_S)
        new.send(rig, 2, LONG_S)
        self.move(rig, old, new)
        self.assertEqual(len(self.moved), 1)
        self.assert_continuous(self.heard(rig), 440, 1.05)

    def test_new_server_that_sends_nothing(self) -> None:
        rig = self.rig(play=True)
        old, new = Server(sine(LONG_S, 440), OLD), Server(sine(LONG_S, 440), NEW, first_ssrc=9000)
        old.send(rig, 0, LONG_S)
        self.move(rig, old, new)
        rig.receiver.leave_off()
        self.assertEqual(self.moved, [])
        self.assert_continuous(self.heard(rig), 440, 1.05)
        self.assertEqual(rig.sockets.only_from, (OLD,))

    def test_new_server_that_sends_half(self) -> None:
        """One of two groups only: nothing to go over to."""
        rig = self.rig(play=True)
        old, new = Server(sine(LONG_S, 440), OLD), Server(sine(LONG_S, 440), NEW, first_ssrc=9000)
        old.send(rig, 0, LONG_S)
        for number in range(1200):
            arrival = START_NS + number * 5_000_000
            rig.send(new.packets.datagrams(number, arrival, lost=frozenset({1}), address=NEW))
        self.move(rig, old, new)
        self.assertEqual(self.moved, [])
        self.assert_continuous(self.heard(rig), 440, 1.05)

    def test_old_server_dies_while_the_new_one_fills(self) -> None:
        """What is missing is concealed; the new one is heard at once, not after its second."""
        rig = self.rig(play=True)
        old, new = (
            Server(sine(LONG_S, 440), OLD),
            Server(sine(LONG_S, 440, 1.0), NEW, first_ssrc=9000),
        )
        old.send(rig, 0, 2.5)
        new.send(rig, 2, LONG_S)
        self.move(rig, old, new)
        self.assertLess(self.moved[0], 2.65)
        sound = self.heard(rig)
        self.assertLess(np.abs(np.diff(sound)).max(), 3 * 0.5 * 2 * np.pi * 440 / RATE)
        loud = np.flatnonzero(np.abs(sound) > 0.02)
        self.assertLess(np.diff(loud).max() / 48, 20)  # ms

    def test_old_server_had_died(self) -> None:
        rig = self.rig(play=True)
        old, new = Server(sine(6, 440), OLD), Server(sine(6, 440, 1.0), NEW, first_ssrc=9000)
        old.send(rig, 0, 0.5)
        new.send(rig, 2.7, 6)
        self.move(rig, old, new, at_s=2.6, seconds=5)
        self.assertApproximates(self.moved[0], 2.6, 1e-6)
        self.assertEqual(rig.sockets.only_from, (NEW,))
        self.assert_continuous(self.heard(rig)[-2 * RATE :], 440, 1.05)

    def test_given_up_and_again(self) -> None:
        rig = self.rig(play=True)
        old, new = Server(sine(8, 440), OLD), Server(sine(8, 440, 1.0), NEW, first_ssrc=9000)
        old.send(rig, 0, 8)
        new.send(rig, 2, 8)
        rig.receiver.listen_to(old.stream, OLD[0])
        for _ in range(3):
            rig.run(1)
            self.follow(rig, new)
            rig.run(0.5)
            rig.receiver.leave_off()
        self.assertEqual(self.moved, [])
        self.follow(rig, new)
        rig.run(2)
        self.assertEqual(len(self.moved), 1)
        self.assert_continuous(self.heard(rig), 440, 1.05)

    def test_there_and_back(self) -> None:
        rig = self.rig(play=True)
        old, new = Server(sine(9, 440), OLD), Server(sine(9, 440, 1.0), NEW, first_ssrc=9000)
        old.send(rig, 0, 9)
        new.send(rig, 0, 9)
        self.move(rig, old, new, seconds=5)
        self.follow(rig, old)
        rig.run(3)
        self.assertEqual(len(self.moved), 2)
        self.assert_continuous(self.heard(rig), 440, 1.05)

    def test_the_announcement_is_told_twice(self) -> None:
        rig = self.rig(play=True)
        old, new = (
            Server(sine(LONG_S, 440), OLD),
            Server(sine(LONG_S, 440, 1.0), NEW, first_ssrc=9000),
        )
        old.send(rig, 0, LONG_S)
        new.send(rig, 2, LONG_S)
        rig.receiver.listen_to(old.stream, OLD[0])
        rig.run(2)
        self.follow(rig, new)
        rig.run(0.7)
        self.follow(rig, new)
        rig.run(0.5)
        self.assertEqual(len(self.moved), 1)

    def test_stopped_while_moving(self) -> None:
        for after in (0.5, FILL_S + 0.008, 2.0):
            rig = self.rig(play=True, record=True)
            old, new = (
                Server(sine(LONG_S, 440), OLD),
                Server(sine(LONG_S, 440), NEW, first_ssrc=9000),
            )
            old.send(rig, 0, LONG_S)
            new.send(rig, 1, LONG_S)
            self.move(rig, old, new, at_s=1.0, seconds=1.0 + after)
            tracks, mix = self.recorded(rig)
            self.assertApproximates(len(tracks), (1.0 + after) * RATE, 0.05 * RATE)
            self.assert_continuous(tracks[4800:], 440, 1.05)
            self.assert_continuous(mix[4800:], 440, 1.05)
            self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_missing_codec_is_told_and_the_old_stream_goes_on(self) -> None:
        def missing() -> None:
            raise OpusUnavailable("Opus needs the library libopus; install it with: x")

        rig = self.rig(play=True)
        old = Server(sine(4, 440), OLD)
        new = Server(sine(4, 440), NEW, codec="opus", first_ssrc=9000)
        old.send(rig, 0, 4)
        rig.receiver.listen_to(old.stream, OLD[0])
        rig.run(1)
        self.patch(decode, "_library", missing)
        self.assertRaises(OpusUnavailable, self.follow, rig, new)
        rig.run(2)
        self.assertEqual(rig.errors, [])
        self.assert_continuous(self.heard(rig), 440, 1.05)


class RecordingOnTest(MovingCase):
    """CON-51: the recording is one piece."""

    def test_same_sound_from_both_is_bit_exact(self) -> None:
        """Two servers on one console: the tracks are as if nothing had happened."""
        for delay_s in (0.0, 0.013, 0.09):
            signal = noise(5 * RATE, 2)
            rig = self.rig(record=True)
            old, new = Server(signal, OLD), Server(signal, NEW, first_ssrc=9000)
            old.send(rig, 0, 4)
            new.send(rig, 2, 5, delay_s=delay_s)
            self.move(rig, old, new, seconds=4.5)
            self.recorded(rig)
            tracks = soundfile.read(self.tracks, dtype="int32", always_2d=True)[0]
            self.assertGreater(len(tracks), 4.3 * RATE)
            np.testing.assert_array_equal(tracks, signal[: len(tracks)])
            self.assertApproximates(rig.receiver.outputs.alike() or 1.0, 1.0, 1e-6)

    def test_tracks_and_mix_go_on(self) -> None:
        rig = self.rig(record=True, play=True)
        old, new = (
            Server(sine(LONG_S, 440), OLD),
            Server(sine(LONG_S, 440, 2.2), NEW, first_ssrc=9000),
        )
        old.send(rig, 0, LONG_S)
        new.send(rig, 2, LONG_S, delay_s=0.004)
        self.move(rig, old, new)
        tracks, mix = self.recorded(rig)
        for sound in (tracks[:, 0], tracks[:, 1], mix[4800:, 0]):
            self.assert_continuous(sound, 440, 1.05)
        self.assertApproximates(len(tracks), LONG_S * RATE, 0.02 * RATE)
        self.assertEqual([one.name for one in rig.receiver.outputs.tracks.parts], ["tracks.wav"])

    def test_sounds_that_have_nothing_in_common(self) -> None:
        rig = self.rig(record=True)
        old, new = Server(sine(LONG_S, 440), OLD), Server(sine(LONG_S, 1000), NEW, first_ssrc=9000)
        old.send(rig, 0, LONG_S)
        new.send(rig, 2, LONG_S)
        self.move(rig, old, new)
        tracks, mix = self.recorded(rig)
        self.assert_continuous(tracks, 1000, 1.45)
        self.assert_continuous(mix[4800:], 1000, 1.45)
        self.assertApproximates(len(tracks), LONG_S * RATE, FRAME)

    def test_from_pcm_to_opus_in_one_file(self) -> None:
        rig = self.rig(record=True)
        old = Server(sine(LONG_S, 440), OLD)
        new = Server(sine(LONG_S, 440, 1.0), NEW, codec="opus", first_ssrc=9000)
        old.send(rig, 0, LONG_S)
        new.send(rig, 2, LONG_S)
        self.move(rig, old, new)
        tracks, _ = self.recorded(rig)
        self.assertEqual(len(rig.receiver.outputs.tracks.parts), 1)
        self.assert_continuous(tracks, 440, 1.2)

    def test_another_rate_is_another_part_without_a_gap(self) -> None:
        rig = self.rig(record=True)
        old = Server(sine(LONG_S, 440), OLD)
        new = Server(sine(LONG_S, 440, rate=32_000), NEW, rate=32_000, first_ssrc=9000)
        old.send(rig, 0, LONG_S)
        new.send(rig, 2, LONG_S)
        self.move(rig, old, new)
        tracks, _ = self.recorded(rig)
        second, rate = soundfile.read(self.tracks.with_name("tracks-2.wav"))
        self.assertEqual(rate, 32_000)
        self.assertApproximates(len(tracks) / RATE + len(second) / rate, LONG_S, 0.02)

    def test_old_server_dies_and_the_recording_stays_in_time(self) -> None:
        rig = self.rig(record=True)
        signal = noise(round(LONG_S * RATE), 2)
        old, new = Server(signal, OLD), Server(signal, NEW, first_ssrc=9000)
        old.send(rig, 0, 2.5)
        new.send(rig, 2.2, LONG_S)
        self.move(rig, old, new)
        self.recorded(rig)
        tracks = soundfile.read(self.tracks, dtype="int32", always_2d=True)[0]
        fade = slice(round(2.5 * RATE), round(2.52 * RATE))
        self.assertApproximates(len(tracks), LONG_S * RATE, FRAME)
        np.testing.assert_array_equal(tracks[: fade.start], signal[: fade.start])
        np.testing.assert_array_equal(tracks[fade.stop :], signal[fade.stop : len(tracks)])

    def test_old_server_is_late_only(self) -> None:
        """Its machine stands still for 400 ms, just when the new one begins to send."""
        rig = self.rig(record=True)
        signal = noise(round(LONG_S * RATE), 2)
        old, new = Server(signal, OLD), Server(signal, NEW, first_ssrc=9000)
        old.send(rig, 0, 2.0)
        for number in range(400, 480):
            rig.send(old.packets.datagrams(number, START_NS + 2_400_000_000, address=OLD))
        old.send(rig, 2.4, LONG_S)
        new.send(rig, 2.05, LONG_S)
        self.move(rig, old, new)
        self.assertEqual(len(self.moved), 1)
        self.recorded(rig)
        tracks = soundfile.read(self.tracks, dtype="int32", always_2d=True)[0]
        self.assertGreater(len(tracks), 4.4 * RATE)
        np.testing.assert_array_equal(tracks, signal[: len(tracks)])

    def test_old_server_died_before_the_new_one_sent(self) -> None:
        """150 ms nobody sent: silence of that length, faded out and in."""
        rig = self.rig(record=True)
        old, new = Server(sine(LONG_S, 440), OLD), Server(sine(LONG_S, 440), NEW, first_ssrc=9000)
        old.send(rig, 0, 2.5)
        new.send(rig, 2.65, LONG_S)
        self.move(rig, old, new, at_s=2.6)
        tracks, _ = self.recorded(rig)
        self.assertApproximates(len(tracks), LONG_S * RATE, 0.025 * RATE)
        own = 0.5 * 2 * np.pi * 440 / RATE
        self.assertLess(np.abs(np.diff(tracks[:, 0])).max(), 2 * own)


class CountingOnTest(MovingCase):
    def test_figures_and_reports(self) -> None:
        """Each packet that is heard counts once; both servers get receiver reports."""
        rig = self.rig()
        silence = np.zeros((10 * RATE, 2), np.int32)
        old, new = Server(silence, OLD), Server(silence, NEW, first_ssrc=9000)
        old.send(rig, 0, 10)
        new.send(rig, 1, 10)
        self.move(rig, old, new, at_s=1, seconds=1.5)
        for data, _ in rig.sockets.sent:
            self.assertIsInstance(parse_compound(data)[0], ReceiverReport)
        self.assertEqual(set(rig.sockets.only_from), {OLD, NEW})
        rig.run(8)
        self.assertEqual(rig.sockets.only_from, (NEW,))
        figures = rig.receiver.figures()
        self.assertApproximates(figures.totals.packets, 2 * 1900, 6)
        self.assertEqual((figures.totals.lost, figures.late), (0, 0))
        self.assertIn((NEW[0], NEW[1] + 1), {address for _, address in rig.sockets.sent})

    def test_reports_to_both_while_both_flow(self) -> None:
        rig = self.rig()
        silence = np.zeros((12 * RATE, 2), np.int32)
        old, new = Server(silence, OLD), Server(silence, NEW, first_ssrc=9000)
        old.send(rig, 0, 12)
        for number in range(2400):  # one group only: it never takes over
            arrival = START_NS + number * 5_000_000
            rig.send(new.packets.datagrams(number, arrival, lost=frozenset({1}), address=NEW))
        self.move(rig, old, new, at_s=0.5, seconds=11)
        addresses = {address for _, address in rig.sockets.sent}
        self.assertEqual(addresses, {(OLD[0], OLD[1] + 1), (NEW[0], NEW[1] + 1)})

    def test_latency_by_the_other_servers_clock(self) -> None:
        """CLK-2: what was measured before counts by the old clock, what follows by the new."""
        meter, other = LatencyMeter(), LatencyMeter()
        meter.offset_ns, other.offset_ns = 0, 1_000_000_000
        for number in range(100):
            meter.received(number * 1_000_000, number * 1_000_000 - 5_000_000)
            other.received(number * 1_000_000, number * 1_000_000 + 993_000_000)
        meter.follow(other)
        self.assertApproximates(meter.last_ms, 7, 1e-6)
        self.assertEqual((meter.quantile(0.2), meter.quantile(0.9)), (5.0, 7.0))
