"""STR-40, STR-41: each wanted channel is encoded once per profile, and only while it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.audio import encoder as encoder_module
from m32net.audio.crew import Crew
from m32net.audio.encoder import Encoding
from m32net.audio.engine import Engine
from m32net.audio.events import EncoderFailed, EngineFault
from m32net.audio.frame import EncodedFrame
from m32net.audio.opus import EncoderUnavailable
from m32net.streaming.profile import Profile
from protocols.rtp.payload import wire_to_pcm
from tests.support.audio import Events, FakeClock, ScriptedSource, opus, pattern, pcm

ALL = frozenset({1, 2, 3, 4})


class EngineCase(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.source = ScriptedSource(4)
        self.batches: list[Sequence[EncodedFrame]] = []
        self.events = Events()
        self.rests: list[float] = []
        self.engine = self.make_engine()

    def make_engine(self) -> Engine:
        return Engine(
            self.source,
            self.batches.append,
            self.events,
            clock=self.clock,
            crew=Crew(1),
            rest=self.rests.append,
        )

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def frames(self, profile: Profile) -> list[EncodedFrame]:
        return [frame for batch in self.batches for frame in batch if frame.profile == profile]

    def assert_exact(self, profile: Profile, frames: list[EncodedFrame]) -> None:
        width = {"L16": 2, "L24": 3}[profile.codec]
        for frame in frames:
            back = wire_to_pcm(frame.payload.tobytes(), 4, width)
            expected = pattern(frame.media_time, frame.duration, 4)
            if width == 2:
                expected = ((expected >> 15) + 1 >> 1) << 16
            np.testing.assert_array_equal(back, expected)


class DemandTests(EngineCase):
    def test_nobody_listens_nothing_is_read(self) -> None:
        """STR-40: the source is looked after a few times a second, no more."""
        self.steps(3)
        self.assertEqual(self.source.calls, ["idle", "idle", "idle"])
        self.assertEqual(self.rests, [0.25] * 3)
        self.assertEqual(self.batches, [])

    def test_turns(self) -> None:
        """CON-40: an engine that rests or waits still turns; one that hangs does not."""
        self.steps(3)
        self.engine.set_demand({opus(): ALL})
        self.steps(2)
        self.assertEqual(self.engine.turns, 5)

    def test_the_last_listener_leaves(self) -> None:
        self.engine.set_demand({opus(): ALL})
        self.steps(4)
        self.assertEqual(self.engine.status().encoders_active, 4)
        self.engine.set_demand({})
        self.source.calls.clear()
        self.steps(2)
        self.assertEqual(self.source.calls, ["idle", "idle"])
        status = self.engine.status()
        self.assertEqual((status.encoders_active, status.profiles), (0, ()))
        self.assertEqual(status.frames_encoded, 4)

    def test_no_channels_is_no_demand(self) -> None:
        self.engine.set_demand({opus(): frozenset()})
        self.steps(1)
        self.assertEqual(self.source.calls, ["idle"])

    def test_frames_follow_each_other_exactly(self) -> None:
        profile = pcm("L24")
        self.engine.set_demand({profile: ALL})
        self.steps(50)
        frames = self.frames(profile)
        self.assertEqual([frame.media_time for frame in frames], list(range(0, 50 * 240, 240)))
        self.assert_exact(profile, frames)

    def test_one_batch_holds_what_ends_together(self) -> None:
        """Blocks of the shortest frame; longer frames come with their last block."""
        short, middle, long = pcm("L16", 2500), opus(5000), pcm("L24", 20_000)
        self.engine.set_demand({long: ALL, short: ALL, middle: frozenset({2})})
        self.steps(16)
        self.assertEqual(set(self.source.calls), {"read 120"})
        sizes = [len(batch) for batch in self.batches]
        self.assertEqual(sizes, [1, 2, 1, 2, 1, 2, 1, 3] * 2)
        for profile in (short, long):
            self.assert_exact(profile, self.frames(profile))

    def test_others_do_not_notice_a_change(self) -> None:
        """A profile keeps its frames in sequence while another comes, changes and goes."""
        kept, other = pcm("L24"), opus(2500)
        self.engine.set_demand({kept: ALL})
        self.steps(3)
        for demand in ({other: ALL}, {other: frozenset({1})}, {}):
            self.engine.set_demand({kept: ALL, **demand})
            self.steps(7)
        self.engine.set_demand({kept: ALL})
        self.steps(3)
        times = [frame.media_time for frame in self.frames(kept)]
        self.assertEqual(times, list(range(0, 240 * len(times), 240)))
        self.assertGreater(len(times), 12)

    def test_longer_blocks_begin_on_their_own_grid(self) -> None:
        """From 2.5 ms to 20 ms in mid-frame: short reads up to the grid, then long ones."""
        self.engine.set_demand({pcm("L16", 2500): ALL})
        self.steps(3)
        profile = pcm("L16", 20_000)
        self.engine.set_demand({profile: ALL})
        self.source.calls.clear()
        self.steps(5)
        self.assertEqual(
            self.source.calls, ["read 120", "read 480", "read 960", "read 960", "read 960"]
        )
        frames = self.frames(profile)
        self.assertEqual([frame.media_time for frame in frames], [0, 960, 1920, 2880])
        self.assert_exact(profile, frames)

    def test_a_gap_is_stepped_over(self) -> None:
        """STR-2: time stamps run on over a gap, and no frame mixes both sides of it."""
        profile = pcm("L24", 10_000)
        self.engine.set_demand({profile: ALL, pcm("L24", 2500): ALL})
        self.steps(6)
        self.source.jump = 3 * 960
        self.steps(8)
        frames = self.frames(profile)
        self.assertEqual([frame.media_time for frame in frames], [0, 3840])
        self.assert_exact(profile, frames)

    def test_silence_of_the_source_is_waited_out(self) -> None:
        self.engine.set_demand({pcm(): ALL})
        self.source.absent = 3
        self.steps(4)
        self.assertEqual(len(self.batches), 1)

    def test_lossy_codecs_get_the_tones(self) -> None:
        """STR-3: Opus hears the source's tones, PCM its numbers."""
        self.source.tones = True
        heard: list[np.ndarray] = []
        begin = encoder_module.OpusBank.begin

        def listen(bank: object, floats: np.ndarray) -> object:
            heard.append(floats[:, :4].copy())
            return begin(bank, floats)  # type: ignore[arg-type]

        with mock.patch.object(encoder_module.OpusBank, "begin", listen):
            self.engine.set_demand({opus(): ALL, pcm("L24"): ALL})
            self.steps(2)
        np.testing.assert_allclose(heard[1], -pattern(240, 240, 4) / 2.0**31, atol=1e-6)
        self.assert_exact(pcm("L24"), self.frames(pcm("L24")))

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sets(
                    st.sampled_from(
                        [pcm("L24", us) for us in (2500, 5000, 10_000, 20_000)]
                        + [pcm("L16", us) for us in (2500, 20_000)]
                    )
                ),
                st.integers(0, 9),
                st.integers(0, 2),
            ),
            max_size=8,
        )
    )
    def test_any_history_of_demands_and_gaps(
        self, history: list[tuple[set[Profile], int, int]]
    ) -> None:
        """Frames of every profile: on their grid, in order, bit-exact, none twice."""
        self.setUp()
        for profiles, steps, jump in history:
            self.engine.set_demand(dict.fromkeys(profiles, ALL))
            self.source.jump = 960 * jump
            self.steps(steps)
        for profile in {p for profiles, _, _ in history for p in profiles}:
            frames = self.frames(profile)
            times = [frame.media_time for frame in frames]
            self.assertEqual(times, sorted(set(times)))
            self.assertTrue(all(time % profile.capture_samples == 0 for time in times))
            self.assert_exact(profile, frames)
        self.assertEqual(self.events, [])


class TroubleTests(EngineCase):
    def test_missing_libopus_is_told_once_and_pcm_goes_on(self) -> None:
        with mock.patch.object(
            encoder_module, "OpusBank", mock.Mock(side_effect=EncoderUnavailable("no libopus"))
        ):
            self.engine.set_demand({opus(): ALL, pcm(): ALL})
            self.steps(5)
            self.engine.set_demand({opus(): frozenset({1}), pcm(): ALL})
            self.steps(5)
        self.assertEqual(self.events, [EncoderFailed(opus(), "no libopus")])
        self.assertEqual(len(self.frames(pcm())), 10)

    def test_a_failed_profile_is_tried_again_when_it_comes_back(self) -> None:
        with mock.patch.object(
            encoder_module, "OpusBank", mock.Mock(side_effect=EncoderUnavailable("no libopus"))
        ):
            self.engine.set_demand({opus(): ALL})
            self.steps(2)
        self.engine.set_demand({})
        self.steps(1)
        self.engine.set_demand({opus(): ALL})
        self.steps(3)
        self.assertEqual(len(self.frames(opus())), 3)

    def test_an_encoder_that_fails_in_flight_ends_only_its_profile(self) -> None:
        self.engine.set_demand({opus(): ALL, opus(10_000): ALL})
        self.steps(2)
        broken = self.engine._encoders[opus()]
        broken._bank._chunks[0]._length = np.array([99], np.uint8)  # type: ignore[attr-defined]
        self.steps(4)
        (event,) = self.events
        self.assertEqual(event.profile, opus())
        self.assertEqual([f.media_time for f in self.frames(opus(10_000))], [0, 480, 960, 1440])
        self.assertEqual(self.engine.status().profiles, (opus(10_000),))

    def test_a_surprise_in_one_encoder_ends_only_its_profile(self) -> None:
        for method in ("begin", "finish"):
            self.setUp()
            self.engine.set_demand({pcm(): ALL, opus(10_000): ALL})
            self.steps(2)
            broken = self.engine._encoders[pcm()]

            def surprise(*_: object) -> Encoding:
                raise RuntimeError("surprise")

            begin = surprise if method == "begin" else lambda *_: Encoding([], surprise)  # type: ignore[arg-type, return-value]
            broken.begin = begin  # type: ignore[method-assign]
            self.steps(4)
            (event,) = self.events
            self.assertEqual((event.profile, event.reason), (pcm(), "RuntimeError: surprise"))
            times = [f.media_time for f in self.frames(opus(10_000))]
            self.assertEqual(times, [0, 480, 960, 1440])

    def test_an_unexpected_error_is_told_and_survived(self) -> None:
        self.engine.set_demand({pcm(): ALL})
        self.source.error = RuntimeError("surprise")
        rested: list[float] = []

        def rest(seconds: float) -> None:
            rested.append(seconds)

        self.engine._rest = rest
        deliver = self.engine._deliver

        def stop_after_first(frames: Sequence[EncodedFrame]) -> None:
            deliver(frames)
            self.engine.stop()

        self.engine._deliver = stop_after_first
        self.engine.run()
        (event,) = self.events.of(EngineFault)
        self.assertIn("surprise", event.reason)
        self.assertIn("Traceback", event.trace)
        self.assertEqual(rested, [1.0])
        self.assertEqual(len(self.batches), 1)
        self.assertEqual(self.source.calls[0], "start")
        self.assertEqual(self.source.calls[-1], "stop")

    def test_figures(self) -> None:
        self.engine.set_demand({opus(): ALL, opus(10_000): frozenset({1, 2})})
        self.clock.call_at(0, lambda: None)
        self.steps(4)
        status = self.engine.status()
        self.assertEqual(status.encoders_active, 6)
        self.assertEqual(status.frames_encoded, 6)
        self.assertEqual(set(status.profiles), {opus(), opus(10_000)})


class RestTests(unittest.TestCase):
    def test_new_demand_ends_the_rest(self) -> None:
        """The engine sleeps while nobody listens, but not through the first listener."""
        engine = Engine(
            ScriptedSource(), lambda _b: None, Events(), clock=FakeClock(), crew=Crew(1)
        )
        engine._apply(engine._demand)
        engine.set_demand({pcm(): ALL})
        engine._sleep(3600)
        engine._apply(engine._demand)
        engine.stop()
        engine._sleep(3600)
