"""STR-7, STR-8, STR-10, STR-38, STR-43: settings: defaults, rules, changes, persistence."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, reactor
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.interfaces import QualityReport, RefusedError
from m32net.settings import (
    MAX_NAME,
    AudioConfig,
    AudioConfigChange,
    AudioConfigChanged,
    Channel,
    ChannelChange,
    ChannelsChanged,
    InvalidSettingError,
    NotSavedError,
    ServerSettings,
    ServerSettingsChanged,
    Thresholds,
    ThresholdsChanged,
)
from m32net.store.database import StoreError, connect
from m32net.store.service import FLUSH_S, open_settings
from tests.support.store import inline_settings


class Settings(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "m32net.sqlite3"
        self.clock = Clock()
        self.service, self.database = inline_settings(self.path, clock=self.clock)
        self.addCleanup(self.database.close)
        self.heard: list[Any] = []
        self.service.subscribe(self.heard.append)

    def reopened(self, **options: Any) -> Any:
        """The service as a new process finds it."""
        service, database = inline_settings(self.path, clock=self.clock, **options)
        self.addCleanup(database.close)
        return service

    def done(self, deferred: defer.Deferred[Any]) -> Any:
        return self.successResultOf(deferred)

    def refused(self, deferred: defer.Deferred[Any]) -> InvalidSettingError:
        error = self.failureResultOf(deferred, InvalidSettingError).value
        self.assertEqual(self.heard, [])
        return error


class Defaults(Settings):
    def test_first_start(self) -> None:
        """STR-8, STR-38, STR-43: the defaults."""
        self.assertEqual(
            self.service.audio_config, AudioConfig(48000, "opus", 96000, 5000, "bundle")
        )
        self.assertEqual(self.service.thresholds, Thresholds(100, 200))
        self.assertEqual(len(self.service.channels), 32)
        self.assertEqual([c.name for c in self.service.channels[:2]], ["CH01", "CH02"])
        self.assertTrue(all(c.enabled for c in self.service.channels))
        values = self.service.settings
        self.assertEqual(
            (values.dscp, values.heartbeat_timeout_s, values.max_listeners), (46, 30.0, 20)
        )

    def test_node_id_stays(self) -> None:
        self.assertEqual(len(self.service.node_id), 32)
        self.assertEqual(self.reopened().node_id, self.service.node_id)

    def test_names_from_the_source(self) -> None:
        """A source's names stand until the engineer chooses one, and don't end up in the file."""
        service = self.reopened(channels=3, default_names=["Kick", "", "Bass"])
        self.assertEqual([c.name for c in service.channels], ["Kick", "CH02", "Bass"])
        self.done(service.set_channels([ChannelChange(1, color="#123456")], who="t"))
        self.done(service.set_channels([ChannelChange(3, name="Tuba")], who="t"))
        again = self.reopened(channels=3)
        self.assertEqual([c.name for c in again.channels], ["CH01", "CH02", "Tuba"])
        self.assertEqual(again.channels[0].color, "#123456")

    def test_fewer_channels(self) -> None:
        """A smaller source shows fewer channels; the others' settings are kept."""
        self.done(self.service.set_channels([ChannelChange(32, name="Talk")], who="t"))
        self.assertEqual(len(self.reopened(channels=8).channels), 8)
        self.assertEqual(self.reopened(channels=32).channels[31].name, "Talk")


class AudioFormat(Settings):
    def test_change(self) -> None:
        """STR-10: subscribers hear the old and the new format, after it is saved."""
        old = self.service.audio_config
        new = self.done(
            self.service.set_audio_config(
                AudioConfigChange(codec="L16", sample_rate=32000), who="admin", reason="why"
            )
        )
        self.assertEqual(new, AudioConfig(32000, "L16", 96000, 5000, "bundle"))
        self.assertEqual(self.heard, [AudioConfigChanged(old, new, "admin", "why")])
        self.assertEqual(self.reopened().audio_config, new)

    def test_history_of_rows(self) -> None:
        for rate in (44100, 32000):
            self.clock.advance(1)
            self.done(
                self.service.set_audio_config(
                    AudioConfigChange(sample_rate=rate), who="server", reason="loss"
                )
            )
        rows = self.database.connection.execute(
            "SELECT sample_rate, changed_at, who, reason FROM audio_config ORDER BY id"
        ).fetchall()
        self.assertEqual(rows, [(44100, 1.0, "server", "loss"), (32000, 2.0, "server", "loss")])

    def test_nothing_new(self) -> None:
        """The same format again interrupts nobody."""
        self.done(self.service.set_audio_config(AudioConfigChange(codec="opus"), who="t"))
        self.assertEqual(self.heard, [])

    def test_refusals_name_the_field(self) -> None:
        for change, field in (
            (AudioConfigChange(sample_rate=96000), "sample_rate"),
            (AudioConfigChange(codec="mp3"), "codec"),  # type: ignore[arg-type]
            (AudioConfigChange(bitrate=1), "bitrate"),
            (AudioConfigChange(frame_us=7), "frame_ms"),
            (AudioConfigChange(layout="pile"), "layout"),  # type: ignore[arg-type]
            (AudioConfigChange(codec="L24", frame_us=20000), "frame_ms"),
        ):
            error = self.refused(self.service.set_audio_config(change, who="t"))
            self.assertEqual(error.field, field)
            self.assertIn(field, error.message)

    def test_frame_follows_the_codec(self) -> None:
        """A frame nobody asked for is shortened if the new codec's packets can't hold it."""
        self.done(self.service.set_audio_config(AudioConfigChange(frame_us=20000), who="t"))
        new = self.done(self.service.set_audio_config(AudioConfigChange(codec="L24"), who="t"))
        self.assertEqual(new.frame_ms, 10)

    def test_bitrate_in_force(self) -> None:
        self.assertEqual(AudioConfig().bitrate_in_force, 96000)
        self.assertEqual(AudioConfig(sample_rate=24000).bitrate_in_force, 48000)
        self.assertEqual(AudioConfig(codec="L24").bitrate_in_force, 48000 * 24)


class Channels(Settings):
    def test_rename_is_no_mapping_change(self) -> None:
        """STR-10: a rename, recolour or reorder does not interrupt audio."""
        self.done(
            self.service.set_channels(
                [ChannelChange(2, name="Bass", color="#00ff00", order=7)], who="t"
            )
        )
        (change,) = self.heard
        self.assertIsInstance(change, ChannelsChanged)
        self.assertFalse(change.mapping_changed)
        self.assertEqual(change.changed, {2})
        self.assertEqual(change.channels[1], Channel(2, "Bass", "#00ff00", 7, True))

    def test_switching_off_is(self) -> None:
        self.done(self.service.set_channels([ChannelChange(2, enabled=False)], who="t"))
        self.assertTrue(self.heard[0].mapping_changed)
        self.assertFalse(self.reopened().channels[1].enabled)

    def test_default_name_back(self) -> None:
        self.done(self.service.set_channels([ChannelChange(2, name="CH99")], who="t"))
        self.done(self.service.set_channels([ChannelChange(2, name=None)], who="t"))
        self.assertEqual(self.service.channels[1].name, "CH02")
        self.assertEqual(self.reopened(default_names=["", "Bass"]).channels[1].name, "Bass")

    def test_a_chosen_name_may_equal_the_default(self) -> None:
        self.done(self.service.set_channels([ChannelChange(2, name="CH02")], who="t"))
        self.assertEqual(self.reopened(default_names=["", "Bass"]).channels[1].name, "CH02")

    def test_refusals(self) -> None:
        for changes, words in (
            ([ChannelChange(40)], "[0].id: there is no channel 40"),
            ([ChannelChange(1), ChannelChange(1)], "[1].id: channel 1 is listed twice"),
            ([ChannelChange(1, name="x" * (MAX_NAME + 1))], "[0].name: has 129 characters"),
            ([ChannelChange(1, name="")], "[0].name"),
            ([ChannelChange(1, name="\ud83d")], "[0].name: holds half of a surrogate pair"),
            ([ChannelChange(1, color="red")], "[0].color"),
            ([ChannelChange(1, order=-1)], "[0].order"),
        ):
            self.assertIn(words, self.refused(self.service.set_channels(changes, who="t")).message)

    def test_all_or_nothing(self) -> None:
        self.refused(
            self.service.set_channels([ChannelChange(1, name="A"), ChannelChange(99)], who="t")
        )
        self.assertEqual(self.service.channels[0].name, "CH01")

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_NAME))
    def test_names_are_byte_exact(self, name: str) -> None:
        """STR-8: any Unicode, NUL and emoji included, comes back as the same bytes."""
        self.done(self.service.set_channels([ChannelChange(5, name=name)], who="t"))
        self.assertEqual(self.service.channels[4].name.encode(), name.encode())
        service, database = inline_settings(self.path)
        database.close()
        self.assertEqual(service.channels[4].name.encode(), name.encode())


class Values(Settings):
    def test_thresholds(self) -> None:
        self.done(self.service.set_thresholds(Thresholds(50, 150), who="t"))
        self.assertEqual(self.heard, [ThresholdsChanged(Thresholds(50, 150), "t")])
        self.assertEqual(self.reopened().thresholds, Thresholds(50, 150))

    def test_threshold_rules(self) -> None:
        """STR-38: 0 < interpolate < drop <= 5000."""
        for pair in ((0, 100), (-1, 5), (200, 200), (300, 200), (100, 5001)):
            self.assertRaises(InvalidSettingError, Thresholds, *pair)
        Thresholds(1, 5000)

    def test_setting(self) -> None:
        """STR-43."""
        self.done(self.service.set_settings({"dscp": 34}, who="t"))
        (change,) = self.heard
        self.assertEqual(change.changed, {"dscp"})
        self.assertEqual((change.old.dscp, change.new.dscp), (46, 34))
        self.assertIsInstance(change, ServerSettingsChanged)
        self.assertEqual(self.reopened().settings, ServerSettings(dscp=34))

    def test_every_setting_survives(self) -> None:
        values = {
            "dscp": 0,
            "heartbeat_timeout_s": 12.5,
            "max_listeners": 1000,
            "adaptation": "server",
            "step_loss": 0.5,
            "step_jitter_ms": 1,
            "step_latency_ms": 2,
            "step_down_after_s": 3,
            "step_up_after_s": 4,
        }
        self.done(self.service.set_settings(values, who="t"))
        self.assertEqual(self.reopened().settings, ServerSettings(**values))  # type: ignore[arg-type]

    def test_refusals(self) -> None:
        for name, value in (
            ("dscp", 64),
            ("dscp", "46"),
            ("dscp", True),
            ("max_listeners", 0),
            ("adaptation", "maybe"),
            ("heartbeat_timeout_s", float("nan")),
            ("heartbeat_timeout_s", None),
            ("no_such", 1),
        ):
            error = self.refused(self.service.set_settings({name: value}, who="t"))
            self.assertEqual(error.field, name)

    def test_value_of_another_version(self) -> None:
        """A setting this program does not know is left alone; a bad value is refused clearly."""
        with self.database.connection as connection:
            connection.execute("INSERT INTO settings VALUES ('future', '1', 0, '')")
        self.assertEqual(self.reopened().settings, ServerSettings())
        with self.database.connection as connection:
            connection.execute("INSERT INTO settings VALUES ('dscp', '999', 0, '')")
        error = self.assertRaises(StoreError, open_settings, self.path, reactor=Clock())
        self.assertIn("dscp", str(error))


class Order(Settings):
    def test_confirmed_after_commit(self) -> None:
        """STR-7: nothing is said or seen before the database has it."""
        self.database.waiting = []
        deferred = self.service.set_thresholds(Thresholds(1, 2), who="t")
        self.assertNoResult(deferred)
        self.assertEqual((self.service.thresholds, self.heard), (Thresholds(100, 200), []))
        self.database.do_one()
        self.assertEqual(self.done(deferred), Thresholds(1, 2))
        self.assertEqual(len(self.heard), 1)

    def test_one_after_the_other(self) -> None:
        """Two partial changes of one channel under way at the same time both last."""
        self.database.waiting = []
        first = self.service.set_channels([ChannelChange(1, name="A")], who="t")
        second = self.service.set_channels([ChannelChange(1, color="#000000")], who="t")
        self.assertEqual(len(self.database.waiting), 1)
        self.database.do_one()
        self.done(first)
        self.database.do_one()
        self.done(second)
        self.assertEqual(self.reopened().channels[0], Channel(1, "A", "#000000", 1))

    def test_cancelled_caller(self) -> None:
        """A caller that goes away does not leave memory and disk apart, nor stop the next."""
        self.database.waiting = []
        first = self.service.set_thresholds(Thresholds(1, 2), who="t")
        first.cancel()
        self.failureResultOf(first, defer.CancelledError)
        second = self.service.set_settings({"dscp": 1}, who="t")
        self.database.do_one()
        self.assertEqual(self.service.thresholds, Thresholds(1, 2))
        self.database.do_one()
        self.assertEqual(self.done(second).dscp, 1)

    def test_write_fails(self) -> None:
        """A full disk: refused in words, nothing changes, health says so until a write succeeds."""
        self.database.failure = sqlite3.OperationalError("database or disk is full")
        deferred = self.service.set_thresholds(Thresholds(1, 2), who="t")
        error = self.failureResultOf(deferred, NotSavedError).value
        self.assertIn("disk is full", error.message)
        self.assertEqual(error.status, 503)
        self.assertEqual((self.service.thresholds, self.heard), (Thresholds(100, 200), []))
        health = self.service.health()
        self.assertEqual(health.state, "degraded")
        self.assertIn("disk is full", health.reasons[0])
        self.database.failure = None
        self.done(self.service.set_thresholds(Thresholds(1, 2), who="t"))
        self.assertEqual(self.service.health().state, "healthy")

    def test_read_fails(self) -> None:
        """Nobody can log in with an unreadable database, and is told why."""
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        for reading in (self.service.password_hash("admin"), self.service.quality_history()):
            error = self.failureResultOf(reading, RefusedError).value
            self.assertEqual((error.code, error.status), ("not_readable", 503))
            self.assertIn("disk I/O error", error.message)

    def test_history_fails(self) -> None:
        """Health says so until a write succeeds."""
        self.clock.advance(1)
        self.database.failure = sqlite3.OperationalError("database or disk is full")
        self.service.note_event("device_lost", "gone")
        self.successResultOf(self.service.history.flush(0.0))
        health = self.service.health()
        self.assertEqual(health.state, "degraded")
        why = "the database cannot be written: database or disk is full"
        self.assertEqual(health.reasons, (why,))
        self.assertEqual(health.details["history_waiting"], 1)
        self.database.failure = None
        self.successResultOf(self.service.history.flush(0.0))
        self.assertEqual(self.service.health().state, "healthy")
        self.assertEqual([row.kind for row in self.done(self.service.events())], ["device_lost"])

    def test_failing_subscriber(self) -> None:
        """CLU-12 in small: one that fails does not keep the others from hearing."""
        later: list[Any] = []

        def bad(change: object) -> None:
            raise RuntimeError("no")

        self.service.subscribe(bad)
        end = self.service.subscribe(later.append)
        self.done(self.service.set_settings({"dscp": 1}, who="t"))
        self.assertEqual((len(self.heard), len(later)), (1, 1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        end()
        self.done(self.service.set_settings({"dscp": 2}, who="t"))
        self.assertEqual(len(later), 1)
        self.flushLoggedErrors(RuntimeError)


class Users(Settings):
    def test_users(self) -> None:
        self.assertFalse(self.service.has_users())
        self.service.save_password_now("admin", "$hash")
        self.assertTrue(self.service.has_users())
        self.assertEqual(self.done(self.service.password_hash("admin")), "$hash")
        self.assertIsNone(self.done(self.service.password_hash("eve")))
        self.done(self.service.save_password("admin", "$other"))
        again = self.reopened()
        self.assertTrue(again.has_users())
        self.assertEqual(self.done(again.password_hash("admin")), "$other")

    def test_written_by_another_process(self) -> None:
        """A password reset on the command line counts at once in a running server."""
        self.service.save_password_now("admin", "$hash")
        self.reopened().save_password_now("admin", "$new")
        self.assertEqual(self.done(self.service.password_hash("admin")), "$new")


class Life(Settings):
    def test_history_is_written_regularly(self) -> None:
        self.clock.advance(1)
        self.service.startService()
        self.service.note_quality("a", "Anna", QualityReport("rtcp", 0.0, loss=0.25))
        self.service.note_event("device_lost", "the M32 is gone")
        self.assertEqual(self.done(self.service.quality_history()), [])
        self.clock.advance(FLUSH_S)
        (row,) = self.done(self.service.quality_history())
        self.assertEqual((row.client_id, row.name, row.loss), ("a", "Anna", 0.25))
        (event,) = self.done(self.service.events(limit=5))
        self.assertEqual((event.kind, event.details), ("device_lost", {}))
        self.done(self.service.stopService())

    def test_stop_writes_what_waits(self) -> None:
        self.clock.advance(1)
        self.service.startService()
        self.service.note_quality("a", "", QualityReport("rtcp", 0.0))
        self.database.waiting = []
        change = self.service.set_settings({"dscp": 1}, who="t")
        stopped = self.service.stopService()
        self.assertNoResult(stopped)
        self.database.do_one()
        self.done(change)
        self.database.do_one()
        self.done(stopped)
        self.assertTrue(self.database.closed)
        self.assertEqual(len(self.done(self.reopened().quality_history())), 1)


class Sharing(Settings):
    """CON-51: two servers on one file while one follows the other."""

    def test_frozen(self) -> None:
        """Nothing is changed by who must not; reading goes on."""
        self.service.frozen = "the successor takes over"
        for change in (
            self.service.set_settings({"dscp": 1}, who="t"),
            self.service.set_audio_config(AudioConfigChange(codec="L16"), who="t"),
            self.service.set_channels([ChannelChange(1, name="x")], who="t"),
            self.service.set_thresholds(Thresholds(1, 2), who="t"),
            self.service.save_password("admin", "hash"),
        ):
            error = self.failureResultOf(change, RefusedError).value
            self.assertEqual((error.code, error.status), ("taking_over", 503))
        self.service.frozen = ""
        self.assertEqual(self.done(self.service.set_settings({"dscp": 1}, who="t")).dscp, 1)

    def test_reload(self) -> None:
        """What the other one has stored is taken over, and told once."""
        other = self.reopened()
        self.done(other.set_settings({"dscp": 7}, who="t"))
        self.done(other.set_audio_config(AudioConfigChange(codec="L16"), who="t"))
        self.done(other.set_channels([ChannelChange(3, name="🥁", enabled=False)], who="t"))
        self.done(other.set_thresholds(Thresholds(1, 2), who="t"))
        self.assertEqual(self.service.settings.dscp, 46)
        self.done(self.service.reload(who="the old server"))
        self.assertEqual(self.service.settings.dscp, 7)
        self.assertEqual(self.service.audio_config.codec, "L16")
        self.assertEqual(self.service.channels[2].name, "🥁")
        kinds = [AudioConfigChanged, ChannelsChanged, ThresholdsChanged, ServerSettingsChanged]
        self.assertEqual([type(one) for one in self.heard], kinds)
        self.assertTrue(self.heard[1].mapping_changed)
        self.assertEqual(self.heard[3].changed, {"dscp"})
        self.done(self.service.reload(who="the old server"))
        self.assertEqual(len(self.heard), 4)
        self.database.failure = sqlite3.OperationalError("disk I/O error")
        self.failureResultOf(self.service.reload(who="t"), RefusedError)

    def test_tables_stay_as_they_are(self) -> None:
        """A newer version does not change the tables under the running server's feet."""
        open_settings(self.path, reactor=reactor, shared=True)
        with connect(self.path) as connection:
            connection.execute("DELETE FROM schema_version")
        connection.close()
        error = self.assertRaises(
            StoreError, open_settings, self.path, reactor=reactor, shared=True
        )
        self.assertIn("stop that one first", str(error))


class RealThread(unittest.TestCase):
    @defer.inlineCallbacks
    def test_open_write_stop_open(self) -> Any:
        """The whole, with the real reactor and its thread."""
        path = Path(self.mktemp()) / "state" / "m32net.sqlite3"
        service = open_settings(path, reactor=reactor, channels=4)
        service.startService()
        yield service.set_channels([ChannelChange(4, name="🥁")], who="t")
        yield service.stopService()
        with connect(path) as connection:
            self.assertEqual(connection.execute("SELECT name FROM channels").fetchall(), [("🥁",)])
        connection.close()
