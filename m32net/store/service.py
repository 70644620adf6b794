"""The settings of a running server: current values in memory, every change confirmed on disk.

Reading never waits.  A change is checked, written and committed, then the values in memory
follow and subscribers are told, one change after the other; only then does its Deferred fire
(STR-7).  :func:`open_settings` is the way in; SQL is in :mod:`m32net.store.rows` and
:mod:`m32net.store.history`, files and threads are in :mod:`m32net.store.database`.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, fail, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from m32net.interfaces import Health, QualityReport, RefusedError
from m32net.log import RoomLog
from m32net.settings import (
    AudioConfig,
    AudioConfigChange,
    AudioConfigChanged,
    Channel,
    ChannelChange,
    ChannelsChanged,
    EventRow,
    InvalidSettingError,
    NotSavedError,
    QualityRow,
    ServerSettings,
    ServerSettingsChanged,
    SettingsChange,
    Thresholds,
    ThresholdsChanged,
    changed_settings,
    default_channel,
)
from m32net.store import rows
from m32net.store.database import Database, IDatabase, StoreError, Work, connect, open_database
from m32net.store.guard import GuardedWrites, NotTriedError
from m32net.store.history import History, Retention
from m32net.store.rows import ChannelRow, Stored

T = TypeVar("T")

FLUSH_S: Final = 5.0
"""Seconds that history may wait in memory."""


def open_settings(
    path: Path,
    *,
    reactor: Any,
    channels: int = 32,
    default_names: Sequence[str] = (),
    retention: Retention | None = None,
    shared: bool = False,
) -> SettingsService:
    """Check, migrate and read the database, and make the service on it.  Blocks; for start-up.

    :param shared: another server uses it now, so its tables must stay as they are.
    :param channels: how many the source has; settings of others stay in the database.
    :param default_names: of the channels the engineer has not named, instead of CH01, CH02….
    :raises StoreError: one clear line.
    """
    open_database(path, may_migrate=not shared)
    try:
        with closing(connect(path)) as connection:
            stored = rows.read_stored(connection)
    except (InvalidSettingError, msgspec.MsgspecError, sqlite3.Error) as error:
        raise StoreError(f"{path} holds a value this program can't use: {error}") from None
    return SettingsService(
        Database(path, reactor),
        stored,
        clock=reactor,
        channels=channels,
        default_names=default_names,
        retention=retention,
        path=path,
    )


class SettingsService(Service):
    """Provides :class:`m32net.settings.ISettings` and :class:`m32net.settings.IUsers`.

    :param stored: what the database holds.
    :param clock: for the regular writing of history, and how long a database that fails is left
        alone.
    :param path: of the file, for :meth:`save_password_now`.
    :param wall: Unix time in seconds.
    :ivar node_id: made on the first start and kept.
    :ivar frozen: why nothing may be changed now, for people; empty: changes are taken.
    """

    _log = RoomLog()

    def __init__(
        self,
        database: IDatabase,
        stored: Stored,
        *,
        clock: IReactorTime,
        channels: int = 32,
        default_names: Sequence[str] = (),
        retention: Retention | None = None,
        path: Path | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._path = path
        self._wall = wall
        self._lock = DeferredLock()
        self._subscribers: list[Callable[[SettingsChange], object]] = []
        self._writes = GuardedWrites(database, clock.seconds, self._writes_change)
        self._default_names = {
            i: default_channel(i, name or None).name
            for i, name in zip(
                range(1, channels + 1), (*default_names, *[""] * channels), strict=False
            )
        }
        self.frozen = ""
        self._take(stored)
        self.node_id = stored.node_id
        self.history = History(database, self._writes, retention)
        self._flushing = LoopingCall(self._flush)
        self._flushing.clock = clock

    def _take(self, stored: Stored) -> None:
        self._named = {i for i, row in stored.channels.items() if row.name is not None}
        self._channels = {
            i: stored.channels[i].channel(name)
            if i in stored.channels
            else default_channel(i, name)
            for i, name in self._default_names.items()
        }
        self._audio_config = stored.audio_config or AudioConfig()
        self._thresholds = stored.thresholds
        self._settings = stored.settings
        self._has_users = stored.has_users

    def reload(self, *, who: str) -> Deferred[None]:
        """Follow what another server has stored meanwhile; subscribers are told what differs."""

        @inlineCallbacks
        def step() -> Any:
            stored = yield self._database.run(lambda cursor: rows.read_stored(cursor.connection))
            audio, channels = self._audio_config, self._channels
            thresholds, settings = self._thresholds, self._settings
            self._take(stored)
            if self._audio_config != audio:
                self._tell(AudioConfigChanged(audio, self._audio_config, who, ""))
            changed = frozenset(i for i, one in self._channels.items() if one != channels[i])
            if changed:
                mapping = any(self._channels[i].enabled != channels[i].enabled for i in changed)
                self._tell(ChannelsChanged(self.channels, changed, mapping, who))
            if self._thresholds != thresholds:
                self._tell(ThresholdsChanged(self._thresholds, who))
            if self._settings != settings:
                before, after = map(msgspec.structs.asdict, (settings, self._settings))
                names = frozenset(name for name in after if after[name] != before[name])
                self._tell(ServerSettingsChanged(settings, self._settings, names, who))

        return self._lock.run(step).addErrback(self._unreadable)

    # -- the current values ------------------------------------------------------------------------

    @property
    def audio_config(self) -> AudioConfig:
        return self._audio_config

    @property
    def channels(self) -> tuple[Channel, ...]:
        return tuple(self._channels.values())

    @property
    def thresholds(self) -> Thresholds:
        return self._thresholds

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    def subscribe(self, callback: Callable[[SettingsChange], object]) -> Callable[[], None]:
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def health(self) -> Health:
        """Degraded while what was to be written last, settings or history, could not be."""
        breaker, retry_in_s = self._writes.breaker, math.ceil(self._writes.retry_in_s())
        details = {
            "writes": breaker.state.value,
            "retry_in_s": retry_in_s,
            "history_waiting": self.history.waiting,
            "history_dropped": self.history.dropped,
        }
        reasons: tuple[str, ...] = ()
        if breaker.reason:
            again = f"; tried again in {retry_in_s} s" if retry_in_s else ""
            reasons = (f"the database cannot be written: {breaker.reason}{again}",)
        elif self.history.failure:
            reasons = (f"history cannot be saved: {self.history.failure}",)
        return Health("degraded" if reasons else "healthy", reasons, details)

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``."""
        breaker = self._writes.breaker
        return {
            "store_writes_resting": float(self._writes.retry_in_s() > 0),
            "store_writes_refused_total": breaker.refused,
            "history_rows_waiting": self.history.waiting,
            "history_rows_dropped_total": self.history.dropped,
        }

    # -- changes -----------------------------------------------------------------------------------

    def set_audio_config(
        self, change: AudioConfigChange, *, who: str, reason: str = ""
    ) -> Deferred[AudioConfig]:
        @inlineCallbacks
        def step() -> Any:
            old = self._audio_config
            new = change.applied_to(old)
            if new != old:
                now = self._wall()
                yield self._write(lambda c: rows.add_audio_config(c, new, now, who, reason))
                self._audio_config = new
                self._tell(AudioConfigChanged(old, new, who, reason))
            return new

        return self._in_turn(step)

    def set_channels(
        self, changes: Sequence[ChannelChange], *, who: str
    ) -> Deferred[tuple[Channel, ...]]:
        @inlineCallbacks
        def step() -> Any:
            old, was_named = self._channels, self._named
            new, named = self._changed_channels(changes)
            changed = frozenset(i for i in new if new[i] != old[i])
            touched = [
                ChannelRow(i, c.name if i in named else None, c.color, c.order, c.enabled)
                for i, c in new.items()
                if i in changed or (i in named) != (i in was_named)
            ]
            if touched:
                yield self._write(lambda c: rows.put_channels(c, touched))
                self._channels, self._named = new, named
            if changed:
                mapping = any(new[i].enabled != old[i].enabled for i in changed)
                self._tell(ChannelsChanged(self.channels, changed, mapping, who))
            return self.channels

        return self._in_turn(step)

    def _changed_channels(
        self, changes: Sequence[ChannelChange]
    ) -> tuple[dict[int, Channel], set[int]]:
        """The channels after ``changes``, and the ids of those with a name of their own."""
        new, named, seen = dict(self._channels), set(self._named), set[int]()
        for index, change in enumerate(changes):
            if change.id not in new:
                raise InvalidSettingError(
                    f"[{index}].id", f"there is no channel {change.id}, only 1..{len(new)}"
                )
            if change.id in seen:
                raise InvalidSettingError(f"[{index}].id", f"channel {change.id} is listed twice")
            seen.add(change.id)
            try:
                new[change.id] = change.applied_to(new[change.id], self._default_names[change.id])
            except InvalidSettingError as error:
                raise InvalidSettingError(f"[{index}].{error.field}", error.reason) from None
            if change.name is None:
                named.discard(change.id)
            elif isinstance(change.name, str):
                named.add(change.id)
        return new, named

    def set_thresholds(self, thresholds: Thresholds, *, who: str) -> Deferred[Thresholds]:
        @inlineCallbacks
        def step() -> Any:
            if thresholds != self._thresholds:
                yield self._write(lambda c: rows.put_thresholds(c, thresholds))
                self._thresholds = thresholds
                self._tell(ThresholdsChanged(thresholds, who))
            return thresholds

        return self._in_turn(step)

    def set_settings(self, changes: Mapping[str, object], *, who: str) -> Deferred[ServerSettings]:
        @inlineCallbacks
        def step() -> Any:
            old = self._settings
            new = changed_settings(old, changes)
            before, after = msgspec.structs.asdict(old), msgspec.structs.asdict(new)
            changed = frozenset(name for name in after if after[name] != before[name])
            if changed:
                now = self._wall()
                yield self._write(lambda c: rows.put_settings(c, new, changed, now, who))
                self._settings = new
                self._tell(ServerSettingsChanged(old, new, changed, who))
            return new

        return self._in_turn(step)

    def _in_turn(self, step: Callable[[], Deferred[T]]) -> Deferred[T]:
        """One change after the other, each seen through even if its caller loses interest."""
        if self.frozen:
            return fail(RefusedError("taking_over", self.frozen, 503))
        caller: Deferred[T] = Deferred()
        self._lock.run(step).addCallbacks(caller.callback, caller.errback)
        return caller

    def _write(self, work: Work[object]) -> Deferred[None]:
        def failed(failure: Failure) -> NoReturn:
            failure.trap(sqlite3.Error, NotTriedError)  # type: ignore[no-untyped-call]
            why = failure.getErrorMessage()
            if isinstance(failure.value, NotTriedError):
                raise NotSavedError(why, failure.value.retry_in_s)
            self._log.error("store: nothing could be written: {why}", why=why)
            raise NotSavedError(why)

        return self._writes.write(work).addCallbacks(lambda _: None, failed)

    def _writes_change(self, resting: bool, why: str) -> None:
        """Tell that writing was given up for a while, or works again."""
        if resting:
            self._log.error("store: writing is given up for 60 s at a time: {why}", why=why)
            self.note_event("store_failed", f"the database cannot be written: {why}")
        else:
            self._log.info("store: writing works again")
            self.note_event("store_works_again", f"the database could not be written: {why}")

    def _tell(self, change: SettingsChange) -> None:
        for callback in list(self._subscribers):
            try:
                callback(change)
            except Exception:
                self._log.failure("store: a subscriber failed at {change}", change=change)

    # -- users -------------------------------------------------------------------------------------

    def has_users(self) -> bool:
        return self._has_users

    def save_password_now(self, user: str, password_hash: str) -> None:
        if self._path is None:
            raise NotSavedError("there is no database file")
        try:
            with closing(connect(self._path)) as connection, connection:
                rows.put_user(connection.cursor(), user, password_hash, self._wall())
        except sqlite3.Error as error:
            raise NotSavedError(str(error)) from None
        self._has_users = True

    def save_password(self, user: str, password_hash: str) -> Deferred[None]:
        @inlineCallbacks
        def step() -> Any:
            now = self._wall()
            yield self._write(lambda c: rows.put_user(c, user, password_hash, now))
            self._has_users = True

        return self._in_turn(step)

    def password_hash(self, user: str) -> Deferred[str | None]:
        reading = self._database.run(lambda cursor: rows.password_hash(cursor, user))
        return reading.addErrback(self._unreadable)

    def _unreadable(self, failure: Failure) -> NoReturn:
        failure.trap(sqlite3.Error)  # type: ignore[no-untyped-call]
        why = failure.getErrorMessage()
        self._log.error("store: nothing could be read: {why}", why=why)
        raise RefusedError("not_readable", f"the database could not be read: {why}", 503)

    # -- history -----------------------------------------------------------------------------------

    def note_quality(self, client_id: str, name: str, report: QualityReport) -> None:
        self.history.add_quality(
            QualityRow(
                self._wall(),
                client_id,
                name,
                report.source,
                report.loss,
                report.jitter_ms,
                report.latency_ms,
                report.bandwidth_mbps,
            )
        )

    def note_event(self, kind: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        """Add to the log of events the engineer can read later; written soon, not at once."""
        self.history.add_event(EventRow(self._wall(), kind, message, details or {}))

    def quality_history(
        self, *, client_id: str | None = None, since: float = 0.0, limit: int = 1000
    ) -> Deferred[list[QualityRow]]:
        return self.history.quality(client_id, since, limit).addErrback(self._unreadable)

    def events(self, *, since: float = 0.0, limit: int = 100) -> Deferred[list[EventRow]]:
        return self.history.events(since, limit).addErrback(self._unreadable)

    # -- life --------------------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._flushing.start(FLUSH_S, now=False)

    def _flush(self) -> Deferred[None]:
        return self.history.flush(self._wall())

    @inlineCallbacks
    def stopService(self) -> Any:
        """Finish the changes under way, write what waits, close the file."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._flushing.running:
            self._flushing.stop()
        yield self._lock.run(succeed, None)
        yield self.history.flush(self._wall(), last=True)
        self._database.close()
