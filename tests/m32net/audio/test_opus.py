"""Opus packets are of one size and decode to what went in; each channel is encoded for itself."""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np
import opuslib
from twisted.trial import unittest

from m32net.audio import opus as opus_module
from m32net.audio.crew import Crew
from m32net.audio.opus import EncoderError, EncoderUnavailable, OpusBank, opus_problem
from m32net.streaming.profile import DEFAULT_BITRATE, FRAME_US, SAMPLE_RATES, Profile
from protocols.rtp.payload import multiopus_join, multiopus_split
from tests.support.audio import loudest_hz, opus

RESTRICTED_LOWDELAY_LOOK_AHEAD = 120


def tones(samples: int, channels: int, start: int = 0) -> np.ndarray:
    """Channel *n* is *n* x 100 Hz, with the silent column the bank wants."""
    at = np.arange(start, start + samples)[:, None] / 48_000
    wave = 0.25 * np.sin(2 * np.pi * 100 * np.arange(1, channels + 1) * at)
    return np.hstack((wave, np.zeros((samples, 1)))).astype(np.float32)


def encode(bank: OpusBank, pcm: np.ndarray) -> np.ndarray:
    jobs, payload = bank.begin(np.ascontiguousarray(pcm))
    for job in jobs:
        job()
    return payload


def stream(bank: OpusBank, pcm: np.ndarray) -> list[np.ndarray]:
    size = bank.profile.capture_samples
    return [encode(bank, pcm[at : at + size]) for at in range(0, len(pcm) - size + 1, size)]


def decode(packets: list[bytes], samples: int) -> np.ndarray:
    decoder = opuslib.Decoder(48_000, 1)
    return np.concatenate(
        [np.frombuffer(decoder.decode(packet, samples), np.int16) for packet in packets]
    )


class PacketTests(unittest.TestCase):
    def bank(self, profile: Profile, channels: int, **more: int) -> OpusBank:
        bank = OpusBank(profile, channels, **more)
        self.addCleanup(bank.close)
        return bank

    def test_every_profile_has_packets_of_its_size(self) -> None:
        """All frame lengths, steps and several bit rates: exact size, one frame (code 0)."""
        for frame_us in FRAME_US:
            for step in SAMPLE_RATES:
                for bitrate in (24_000, DEFAULT_BITRATE, 256_000):
                    profile = Profile("opus", step, frame_us, bitrate)
                    bank = self.bank(profile, 5)
                    bank.set_wanted(frozenset(range(1, 6)))
                    payload = encode(bank, tones(profile.capture_samples, 5))
                    self.assertEqual(payload.shape, (5, profile.packet_bytes), profile)
                    self.assertEqual(set(payload[:, 0] & 3), {0}, profile)
                    bank.close()

    def test_32_channels_decode_to_themselves(self) -> None:
        """Each of 32 channels, in chunks on two threads, comes out as its own tone."""
        for frame_us in FRAME_US:
            profile = opus(frame_us)
            size = profile.capture_samples
            bank = self.bank(profile, 32, parts=2)
            bank.set_wanted(frozenset(range(1, 33)))
            crew = Crew(2)
            crew.start()
            payloads = []
            pcm = tones(48_000 // 4, 32)
            for at in range(0, len(pcm) - size + 1, size):
                jobs, payload = bank.begin(np.ascontiguousarray(pcm[at : at + size]))
                crew.run(jobs)
                payloads.append(payload)
            crew.stop()
            for row in range(32):
                heard = decode([payload[row].tobytes() for payload in payloads], size)
                found = loudest_hz(heard[2400:].astype(float))
                self.assertLess(abs(found - 100 * (row + 1)), 8, f"{frame_us} us, {row + 1}")

    def test_delay_is_the_look_ahead_only(self) -> None:
        """Restricted low delay: 2.5 ms, no more; and nothing happens to the level."""
        bank = self.bank(opus(), 1)
        bank.set_wanted(frozenset({1}))
        at = np.arange(48_000) / 48_000
        chirp = 0.25 * np.sin(2 * np.pi * (300 * at + 2000 * at**2))
        pcm = np.stack((chirp, np.zeros(48_000)), axis=1).astype(np.float32)
        heard = decode([payload[0].tobytes() for payload in stream(bank, pcm)], 240) / 32768
        matches = [heard[9600 + lag : 40_000 + lag] @ chirp[9600:40_000] for lag in range(600)]
        self.assertEqual(int(np.argmax(matches)), RESTRICTED_LOWDELAY_LOOK_AHEAD)
        ratio = np.std(heard[9600:]) / np.std(chirp[9600:])
        self.assertLess(abs(ratio - 1), 0.05)

    def test_as_good_as_encoders_of_their_own(self) -> None:
        """Packets sound the same as from a plain encoder with the same settings."""
        profile = opus()
        bank = self.bank(profile, 3)
        bank.set_wanted(frozenset({1, 2, 3}))
        at = np.arange(24_000) / 48_000
        chord = sum(np.sin(2 * np.pi * hertz * at) for hertz in (220, 277, 330, 1400, 3100))
        pcm = np.zeros((24_000, 4), np.float32)
        pcm[:, 1] = 0.1 * chord * (1 + np.sin(2 * np.pi * 9 * at))
        shared = decode([payload[1].tobytes() for payload in stream(bank, pcm)], 240)
        alone = self.bank(profile, 3)
        alone.set_wanted(frozenset({2}))
        single = decode([payload[1].tobytes() for payload in stream(alone, pcm)], 240)
        original = pcm[: len(shared), 1] * 32768

        def snr(heard: np.ndarray) -> float:
            error = heard[120:] - original[:-120]
            return float(10 * np.log10((original**2).sum() / (error**2).sum()))

        self.assertGreater(snr(single), 10)
        self.assertLess(abs(snr(shared) - snr(single)), 0.5)

    def test_narrower_band_at_lower_steps(self) -> None:
        """32 kHz and below are super-wideband: nothing above 12 kHz is sent (STR-42)."""
        random = np.random.default_rng(9)
        pcm = np.zeros((24_000, 2), np.float32)
        pcm[:, 0] = 0.1 * random.standard_normal(24_000)
        for step, highest in ((48_000, 20_000), (44_100, 20_000), (32_000, 12_000)):
            bank = self.bank(opus(step=step, bitrate=128_000), 1)
            bank.set_wanted(frozenset({1}))
            heard = decode([payload[0].tobytes() for payload in stream(bank, pcm)], 240)
            power = np.abs(np.fft.rfft(heard.astype(float))) ** 2
            hertz = np.arange(len(power)) * 48_000 / len(heard)
            above = power[hertz > 13_000].sum() / power.sum()
            self.assertEqual(above > 0.05, highest > 13_000, f"{step}: {above:.3f}")

    def test_packets_join_to_a_bundle_without_encoding(self) -> None:
        bank = self.bank(opus(), 8)
        bank.set_wanted(frozenset(range(1, 9)))
        payload = encode(bank, tones(240, 8))
        out = np.empty(2000, np.uint8)
        length = multiopus_join(payload, out)
        self.assertEqual(
            multiopus_split(out[:length].tobytes(), 8), [row.tobytes() for row in payload]
        )


class DemandTests(unittest.TestCase):
    def bank(self, wanted: set[int], **more: int) -> OpusBank:
        bank = OpusBank(opus(), 16, **more)
        self.addCleanup(bank.close)
        bank.set_wanted(frozenset(wanted))
        return bank

    def test_what_nobody_wants_is_silence_that_can_be_sent(self) -> None:
        """A listener added before the engine knows gets silence, never memory of something else."""
        for frame_us in FRAME_US:
            profile = Profile("opus", 48_000, frame_us, DEFAULT_BITRATE)
            bank = OpusBank(profile, 8)
            self.addCleanup(bank.close)
            bank.set_wanted(frozenset({1, 2}))
            size = profile.capture_samples
            payload = encode(bank, tones(size, 8))
            self.assertFalse((payload[:, 0] & 3).any(), "one frame in each packet")
            self.assertTrue((payload[2:] == payload[2]).all())
            self.assertEqual(np.abs(decode([payload[5].tobytes()] * 3, size)).max(), 0)
            self.assertGreater(np.abs(decode([payload[1].tobytes()] * 3, size)).max(), 100)

    def test_only_wanted_channels_have_encoders(self) -> None:
        bank = self.bank({1, 5, 16, 17, 0})
        self.assertEqual(bank.wanted, (1, 5, 16))
        bank.set_wanted(frozenset())
        self.assertEqual(bank.wanted, ())
        self.assertEqual(bank.begin(tones(240, 16))[0], [])

    def test_a_channel_goes_on_undisturbed_when_others_come_and_go(self) -> None:
        """Bit for bit the packets of a bank that nobody touched, while the chunks are regrouped."""
        pcm = tones(240 * 40, 16)
        untouched = self.bank(set(range(1, 9)))
        changed = self.bank(set(range(1, 9)))
        demands = {10: {3, 4, 5}, 20: {1, 2, 3, 4, 5, 6, 7, 8}, 30: {3, 4, 16}}
        for number in range(40):
            if number in demands:
                changed.set_wanted(frozenset(demands[number]))
            block = pcm[number * 240 : (number + 1) * 240]
            expected, got = encode(untouched, block), encode(changed, block)
            for channel in (3, 4):
                self.assertEqual(
                    got[channel - 1].tobytes(), expected[channel - 1].tobytes(), f"{number}"
                )

    def test_a_channel_that_comes_back_starts_fresh(self) -> None:
        """Its first packets are those of a new encoder, not of the one it had before."""
        pcm = tones(240 * 20, 16)
        bank = self.bank({1, 2})
        stream(bank, pcm)
        bank.set_wanted(frozenset({1}))
        bank.set_wanted(frozenset({1, 2}))
        fresh = self.bank({1, 2})
        for number in range(5):
            block = pcm[number * 240 : (number + 1) * 240]
            got, expected = encode(bank, block), encode(fresh, block)
            self.assertEqual(got[1].tobytes(), expected[1].tobytes())
            self.assertNotEqual(got[0].tobytes(), expected[0].tobytes())

    def test_work_is_divided_among_threads(self) -> None:
        for wanted, parts, jobs in ((16, 1, 1), (16, 2, 2), (16, 4, 4), (5, 4, 1), (8, 4, 2)):
            bank = self.bank(set(range(1, wanted + 1)), parts=parts)
            self.assertEqual(len(bank.begin(tones(240, 16))[0]), jobs, f"{wanted} by {parts}")

    def test_without_even_shares_each_channel_has_its_own_call(self) -> None:
        """A libopus that divides CBR otherwise: slower, but right."""
        with mock.patch.object(opus_module, "_shares_evenly", lambda _p, n, _c: n == 1):
            bank = self.bank({1, 2, 3})
        jobs, payload = bank.begin(tones(240, 16))
        self.assertEqual(len(jobs), 3)
        for job in jobs:
            job()
        self.assertEqual(payload.shape[1], 60)

    def test_tiny_packets_are_not_shared_out(self) -> None:
        """At 24 kb/s and 2.5 ms a packet has 8 bytes; chunks get as small as they must."""
        bank = OpusBank(opus(2500, bitrate=24_000), 32)
        self.addCleanup(bank.close)
        bank.set_wanted(frozenset(range(1, 33)))
        payload = encode(bank, tones(120, 32))
        self.assertEqual(payload.shape, (32, 8))
        self.assertEqual(bank.wanted, tuple(range(1, 33)))

    def test_wrong_input_is_refused_before_libopus_sees_it(self) -> None:
        bank = self.bank({1})
        good = tones(240, 16)
        for bad in (good[:120], good[:, :16], good.astype(np.float64), np.asfortranarray(good)):
            self.assertRaises(ValueError, bank.begin, bad)

    def test_an_uneven_packet_is_an_error_not_noise(self) -> None:
        bank = self.bank({1, 2})
        jobs, _ = bank.begin(tones(240, 16))
        bank._chunks[0]._length = np.array([200], np.uint8)
        self.assertRaises(EncoderError, jobs[0])


class UnavailableTests(unittest.TestCase):
    def setUp(self) -> None:
        opus_module._library.cache_clear()
        self.addCleanup(opus_module._library.cache_clear)

    def test_missing_libopus_is_one_line_with_the_command(self) -> None:
        gone = {name: None for name in sys.modules if name.startswith("opuslib")}
        with mock.patch.dict(sys.modules, {**gone, "opuslib": None, "opuslib.api": None}):
            problem = opus_problem()
            assert problem is not None
            self.assertIn("apt-get install libopus0", problem)
            self.assertNotIn("\n", problem)
            self.assertRaises(EncoderUnavailable, OpusBank, opus(), 2)

    def test_present_libopus_is_no_problem(self) -> None:
        self.assertIsNone(opus_problem())
