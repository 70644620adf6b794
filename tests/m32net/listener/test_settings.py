"""STR-21: a mix per device, with presets, stored, exported and imported as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.settings import (
    MAX_PRESETS,
    ChannelMix,
    Eq,
    Limit,
    Master,
    Mix,
    MixBook,
    MixError,
    export_mix,
    import_mix,
    load_book,
    save_book,
)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
gains = st.floats(-15, 15)
limits = st.booleans() | st.builds(
    Limit, ceiling_db=st.floats(-60, 0), release_ms=st.floats(1, 5000), enabled=st.booleans()
)
channels = st.builds(
    ChannelMix,
    id=st.integers(1, 64),
    name=names,
    mute=st.booleans(),
    hidden=st.booleans(),
    order=st.integers(-1000, 1000),
    volume=st.floats(0, 4),
    solo=st.booleans(),
    pan=st.floats(-1, 1),
    eq=st.builds(Eq, low=gains, mid=gains, high=gains),
    limit=limits,
    color=st.none() | names,
    image=st.none() | names,
    sample_rate=st.none() | st.sampled_from([48_000, 44_100, 32_000, 24_000]),
    compression=st.none() | st.sampled_from(["opus", "none", "L16", "L24"]),
)
mixes = st.builds(
    Mix,
    channels=st.lists(channels, max_size=8, unique_by=lambda one: one.id).map(tuple),
    master=st.builds(Master, volume=st.floats(0, 4), limit=limits),
)


class JsonTest(unittest.TestCase):
    """STR-21: every field survives export and import; a wrong one is named."""

    @given(mixes)
    def test_round_trip(self, mix: Mix) -> None:
        self.assertEqual(import_mix(export_mix(mix)), mix)

    def test_shape(self) -> None:
        mix = import_mix(
            '{"channels":[{"id":3,"name":"보컬 🎤","mute":true,"hidden":true,"order":2,'
            '"volume":0.5,"solo":true,"pan":-1,"eq":{"low":-3,"mid":1.5,"high":15},'
            '"limit":{"ceiling_db":-12},"color":"#ff0000","image":"mic","sample_rate":32000,'
            '"compression":"none","of_a_later_version":1}]}'
        )
        channel = mix.channel(3)
        self.assertEqual(channel.name, "보컬 🎤")
        self.assertEqual((channel.pan, channel.eq.mid, channel.volume), (-1.0, 1.5, 0.5))
        assert channel.limiter is not None
        self.assertEqual(channel.limiter.ceiling_db, -12)
        self.assertTrue(channel.mute and channel.hidden and channel.solo)

    def test_limit_as_bool_or_object(self) -> None:
        self.assertIsNone(ChannelMix(1).limiter)
        self.assertIsNotNone(ChannelMix(1, limit=True).limiter)
        self.assertIsNone(ChannelMix(1, limit=Limit(enabled=False)).limiter)

    def test_master_limiter_is_on_by_default(self) -> None:
        limiter = Mix().master.limiter
        assert limiter is not None
        self.assertLess(limiter.ceiling_db, 0)
        self.assertIsNone(Master(limit=False).limiter)

    def test_wrong_field_is_named(self) -> None:
        for text, word in (
            ('{"channels":[{"id":1},{"id":2,"pan":1.5}]}', "channels[1].pan"),
            ('{"channels":[{"id":1,"volume":-1}]}', "channels[0].volume"),
            ('{"channels":[{"id":1,"eq":{"mid":"loud"}}]}', "channels[0].eq.mid"),
            ('{"channels":[{"id":1,"limit":7}]}', "channels[0].limit"),
            ('{"channels":[{"id":65}]}', "channels[0].id"),
            ('{"channels":[{"id":1},{"id":1}]}', "channel 1 is in the mix twice"),
            ('{"channels":[{"name":"x"}]}', "id"),
            ('{"channels":[{"id":1,"volume":NaN}]}', "JSON"),
            ("[]", "object"),
            ("{", "JSON"),
            (b"\xff\xfe", "JSON"),
        ):
            with self.subTest(text):
                error = self.assertRaises(MixError, import_mix, text)
                self.assertIn(word, str(error))

    @given(st.binary(max_size=60) | st.text(max_size=60))
    def test_rubbish_raises_only_mix_error(self, data: bytes | str) -> None:
        try:
            import_mix(data)
        except MixError:
            pass


class MixTest(unittest.TestCase):
    """Looking up and replacing channels."""

    def test_unmentioned_channel_has_defaults(self) -> None:
        self.assertEqual(Mix().channel(9), ChannelMix(9))

    def test_with_channel_replaces_and_orders(self) -> None:
        mix = Mix((ChannelMix(1, order=2), ChannelMix(2, order=1)))
        mix = mix.with_channel(ChannelMix(1, order=0, volume=2.0))
        self.assertEqual([c.id for c in mix.channels], [1, 2])
        self.assertEqual(mix.channel(1).volume, 2.0)


class PresetTest(unittest.TestCase):
    """STR-21: named presets."""

    def test_save_use_delete(self) -> None:
        mine = Mix((ChannelMix(1, volume=0.3),))
        book = MixBook(mine).save_preset("Gig ★").save_preset("quiet", Mix())
        self.assertEqual(book.preset("Gig ★"), mine)
        book = book.delete_preset("Gig ★")
        error = self.assertRaises(MixError, book.preset, "Gig ★")
        self.assertIn("quiet", str(error))
        self.assertRaises(MixError, book.delete_preset, "Gig ★")

    def test_bounds(self) -> None:
        book = MixBook()
        for number in range(MAX_PRESETS):
            book = book.save_preset(f"p{number}")
        self.assertRaises(MixError, book.save_preset, "one more")
        self.assertEqual(len(book.save_preset("p0").presets), MAX_PRESETS)
        self.assertRaises(MixError, book.save_preset, "")


class FileTest(unittest.TestCase):
    """STR-21: stored on the device, whole or not at all."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "mix.json"

    def test_save_and_load(self) -> None:
        book = MixBook(Mix((ChannelMix(2, pan=0.25),))).save_preset("a")
        save_book(book, self.path)
        self.assertEqual(load_book(self.path), book)
        self.assertEqual([p.name for p in self.directory.iterdir()], ["mix.json"])

    def test_load_single_mix(self) -> None:
        mix = Mix((ChannelMix(2, pan=0.25),))
        self.path.write_bytes(export_mix(mix))
        self.assertEqual(load_book(self.path).current, mix)

    def test_failed_write_keeps_the_old_file(self) -> None:
        save_book(MixBook(), self.path)
        old = self.path.read_bytes()
        self.path.with_name("sub").mkdir()
        self.assertRaises(MixError, save_book, MixBook(), self.path.with_name("sub"))
        self.assertRaises(MixError, save_book, MixBook(), self.directory / "no" / "mix.json")
        self.assertEqual(self.path.read_bytes(), old)
        self.assertEqual(sorted(p.name for p in self.directory.iterdir()), ["mix.json", "sub"])

    def test_errors_name_file_and_field(self) -> None:
        self.assertIn("No such file", str(self.assertRaises(MixError, load_book, self.path)))
        self.path.write_text(json.dumps({"presets": {"a": {"channels": [{"id": 1, "pan": 9}]}}}))
        text = str(self.assertRaises(MixError, load_book, self.path))
        self.assertIn("mix.json", text)
        self.assertIn("pan", text)

    def test_too_large_is_refused(self) -> None:
        self.path.write_bytes(b" " * (1024 * 1024 + 1))
        self.assertIn("no mix", str(self.assertRaises(MixError, load_book, self.path)))
