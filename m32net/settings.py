"""What the engineer changes while the server runs: the values, their rules, their changes.

Vocabulary for all rooms, without I/O: :mod:`m32net.store` keeps these values, :mod:`m32net.web`
offers them over REST, the streaming room follows them.  What is fixed for one run of the server
(ports, directories, the source) is in :mod:`m32net.config` instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from twisted.internet.defer import Deferred

from m32net.audio.frame import MAX_CHANNELS
from m32net.interfaces import QualityReport, RefusedError
from m32net.streaming.profile import (
    CODECS,
    DEFAULT_BITRATE,
    FRAME_US,
    MAX_BITRATE,
    MIN_BITRATE,
    SAMPLE_RATES,
    SAMPLE_WIDTH,
    Codec,
    Profile,
    longest_frame_that_fits,
)

Layout = Literal["bundle", "mono"]
LAYOUTS: Final[tuple[Layout, ...]] = ("bundle", "mono")

MAX_NAME: Final = 128
"""Code points in a channel name; its bytes are never changed (STR-8)."""
MAX_ORDER: Final = 9_999
MAX_DROP_MS: Final = 5_000
COLOR_PATTERN: Final = "^#[0-9a-fA-F]{6}$"
PIN_PATTERN: Final = "^[0-9A-Za-z]{0,16}$"
DEFAULT_COLORS: Final = (
    "#e6194b",
    "#f58231",
    "#ffe119",
    "#3cb44b",
    "#42d4f4",
    "#4363d8",
    "#911eb4",
    "#f032e6",
)
"""Given to channels in turn until the engineer chooses; apart in hue, light enough on dark."""


class InvalidSettingError(RefusedError):
    """A value that cannot be used.

    :ivar field: the name of the field, as in the REST bodies; the message starts with it.
    :ivar reason: the rest of the message.
    """

    def __init__(self, field: str, reason: str, status: int = 400) -> None:
        super().__init__("invalid_value", f"{field}: {reason}", status)
        self.field = field
        self.reason = reason


class NotSavedError(RefusedError):
    """A change that could not be written; nothing has changed.

    :ivar retry_in_s: when it was not even tried: seconds until it will be (CON-22).
    """

    def __init__(self, reason: str, retry_in_s: float | None = None) -> None:
        super().__init__("not_saved", f"the change could not be saved: {reason}", 503)
        self.retry_in_s = retry_in_s


# -- audio format ----------------------------------------------------------------------------------


class AudioConfig(Struct, frozen=True):
    """The format the server sends to listeners that leave it the choice.

    :ivar sample_rate: the active step in Hz (STR-42).
    :ivar bitrate: Opus bits per second of one channel at the 48 kHz step; kept while PCM is on.
    :ivar frame_us: frame length in microseconds.
    :raises InvalidSettingError: on construction, naming the field.
    """

    sample_rate: int = SAMPLE_RATES[0]
    codec: Codec = "opus"
    bitrate: int = DEFAULT_BITRATE
    frame_us: int = 5_000
    layout: Layout = "bundle"

    def __post_init__(self) -> None:
        if self.sample_rate not in SAMPLE_RATES:
            raise InvalidSettingError("sample_rate", _none_of(self.sample_rate, SAMPLE_RATES))
        if self.codec not in CODECS:
            raise InvalidSettingError("codec", _none_of(self.codec, CODECS))
        if not MIN_BITRATE <= self.bitrate <= MAX_BITRATE:
            raise InvalidSettingError(
                "bitrate", f"{self.bitrate} is outside {MIN_BITRATE}..{MAX_BITRATE} bit/s"
            )
        if self.frame_us not in FRAME_US:
            lengths = tuple(f"{us / 1000:g}" for us in FRAME_US)
            raise InvalidSettingError("frame_ms", _none_of(f"{self.frame_us / 1000:g}", lengths))
        if self.layout not in LAYOUTS:
            raise InvalidSettingError("layout", _none_of(self.layout, LAYOUTS))
        longest = longest_frame_that_fits(self.codec, self.sample_rate, self.frame_us)
        if longest != self.frame_us:
            raise InvalidSettingError(
                "frame_ms",
                f"{self.frame_us / 1000:g} ms of {self.codec} at {self.sample_rate} Hz are more "
                f"than one packet holds; the longest that fits is {longest / 1000:g} ms",
            )

    @property
    def frame_ms(self) -> float:
        return self.frame_us / 1000

    @property
    def profile(self) -> Profile:
        bitrate = self.bitrate if self.codec == "opus" else 0
        return Profile(self.codec, self.sample_rate, self.frame_us, bitrate)

    @property
    def bitrate_in_force(self) -> int:
        """Bits per second one channel takes without headers, after the step's reduction."""
        profile = self.profile
        if profile.is_pcm:
            return self.sample_rate * SAMPLE_WIDTH[self.codec] * 8
        return profile.opus_bitrate


class AudioConfigChange(Struct, frozen=True, omit_defaults=True):
    """The fields of :class:`AudioConfig` that are to change; the others stay."""

    sample_rate: int | UnsetType = UNSET
    codec: Codec | UnsetType = UNSET
    bitrate: int | UnsetType = UNSET
    frame_us: int | UnsetType = UNSET
    layout: Layout | UnsetType = UNSET

    def applied_to(self, config: AudioConfig) -> AudioConfig:
        """The configuration after this change.

        A frame length that nobody asked for and that does not fit the new codec is shortened;
        one that was asked for is refused.

        :raises InvalidSettingError: a value that cannot be used.
        """
        values = {**msgspec.structs.asdict(config), **_given(self)}
        if self.frame_us is UNSET and values["codec"] in CODECS:
            if values["sample_rate"] not in SAMPLE_RATES:
                raise InvalidSettingError(
                    "sample_rate", _none_of(values["sample_rate"], SAMPLE_RATES)
                )
            values["frame_us"] = longest_frame_that_fits(
                values["codec"], values["sample_rate"], config.frame_us
            )
        return AudioConfig(**values)


# -- channels --------------------------------------------------------------------------------------


class Channel(Struct, frozen=True):
    """One channel as the engineer has set it up.

    :ivar id: 1-based; the channel's column in the capture is ``id - 1``.
    :ivar name: any Unicode text of 1 to :data:`MAX_NAME` code points.
    :ivar color: ``#rrggbb``.
    :ivar order: where it stands in lists; equal ones stand by id.
    :ivar enabled: whether it is sent at all.
    """

    id: int
    name: str
    color: str
    order: int
    enabled: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.id <= MAX_CHANNELS:
            raise InvalidSettingError("id", f"{self.id} is outside 1..{MAX_CHANNELS}")
        _check_name(self.name)
        if not re.fullmatch(COLOR_PATTERN, self.color):
            raise InvalidSettingError("color", "is not of the form #rrggbb")
        if not 0 <= self.order <= MAX_ORDER:
            raise InvalidSettingError("order", f"{self.order} is outside 0..{MAX_ORDER}")


def default_channel(channel_id: int, name: str | None = None) -> Channel:
    """A channel nobody has touched: ``CH01``, ``CH02``… (STR-8), or the given name."""
    color = DEFAULT_COLORS[(channel_id - 1) % len(DEFAULT_COLORS)]
    return Channel(channel_id, name or f"CH{channel_id:02d}", color, channel_id)


class ChannelChange(Struct, frozen=True, omit_defaults=True):
    """The fields of one :class:`Channel` that are to change; ``id`` says which channel.

    :ivar name: ``None`` gives the channel its default name back.
    """

    id: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)] | UnsetType | None = UNSET
    color: Annotated[str, Meta(pattern=COLOR_PATTERN)] | UnsetType = UNSET
    order: Annotated[int, Meta(ge=0, le=MAX_ORDER)] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET

    def applied_to(self, channel: Channel, default_name: str) -> Channel:
        """:raises InvalidSettingError: a value that cannot be used."""
        given = _given(self)
        if self.name is None:
            given["name"] = default_name
        return msgspec.structs.replace(channel, **given)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidSettingError("name", f"has {len(name)} characters, not 1..{MAX_NAME}")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidSettingError("name", "holds half of a surrogate pair") from None


# -- jitter thresholds -----------------------------------------------------------------------------


class Thresholds(Struct, frozen=True):
    """Gaps up to ``interpolate`` ms are concealed, over ``drop`` ms they are faded (STR-27, 38)."""

    interpolate: int = 100
    drop: int = 200

    def __post_init__(self) -> None:
        if not 0 < self.interpolate < self.drop <= MAX_DROP_MS:
            raise InvalidSettingError(
                "interpolate",
                f"needs 0 < interpolate < drop <= {MAX_DROP_MS} ms, "
                f"not interpolate {self.interpolate} and drop {self.drop}",
            )


# -- all the rest ----------------------------------------------------------------------------------


class ServerSettings(Struct, frozen=True, kw_only=True):
    """Single values (STR-43), with their bounds in the annotations.

    :ivar dscp: of the audio packets; 46 is EF.
    :ivar heartbeat_timeout_s: after which a silent listener's audio stops (STR-5).
    :ivar max_listeners: at a time (STR-6).
    :ivar adaptation: whether sample-rate steps are taken for one listener or for all (STR-42).
    :ivar step_loss: fraction of packets, 0..1; with the next two, above which a step down is due.
    :ivar step_down_after_s: how long a threshold must be exceeded.
    :ivar step_up_after_s: how long all must be kept before going up again.
    :ivar listener_pin: what listeners must know to hear anything; empty: nothing.
    """

    dscp: Annotated[int, Meta(ge=0, le=63)] = 46
    heartbeat_timeout_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    max_listeners: Annotated[int, Meta(ge=1, le=10_000)] = 20
    adaptation: Literal["off", "listener", "server"] = "listener"
    step_loss: Annotated[float, Meta(ge=0, le=1)] = 0.02
    step_jitter_ms: Annotated[float, Meta(ge=0, le=5_000)] = 20.0
    step_latency_ms: Annotated[float, Meta(ge=0, le=5_000)] = 100.0
    step_down_after_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    step_up_after_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    listener_pin: Annotated[str, Meta(pattern=PIN_PATTERN)] = ""


SETTING_NAMES: Final = tuple(field.name for field in msgspec.structs.fields(ServerSettings))


def changed_settings(current: ServerSettings, changes: Mapping[str, object]) -> ServerSettings:
    """``current`` with some values replaced.

    :raises InvalidSettingError: an unknown name, or a value of the wrong type or out of bounds.
    """
    for name in changes:
        if name not in SETTING_NAMES:
            raise InvalidSettingError(name[:60], "there is no such setting")
    try:
        return msgspec.convert({**msgspec.structs.asdict(current), **changes}, ServerSettings)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise InvalidSettingError(path.rstrip("`"), reason) from None


# -- changes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AudioConfigChanged:
    """The format is another one; streams that follow it must end and start anew (STR-10)."""

    old: AudioConfig
    new: AudioConfig
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelsChanged:
    """Some channels are set up differently.

    :ivar changed: ids of the channels concerned.
    :ivar mapping_changed: True if other channels are sent than before; a rename or recolour
        alone leaves it False and must not interrupt audio (STR-10).
    """

    channels: tuple[Channel, ...]
    changed: frozenset[int]
    mapping_changed: bool
    who: str


@dataclass(frozen=True, slots=True)
class ThresholdsChanged:
    """Listeners that fetch ``/jitter-thresholds`` now get these."""

    thresholds: Thresholds
    who: str


@dataclass(frozen=True, slots=True)
class ServerSettingsChanged:
    """:ivar changed: the names of the values that are different."""

    old: ServerSettings
    new: ServerSettings
    changed: frozenset[str]
    who: str


SettingsChange = AudioConfigChanged | ChannelsChanged | ThresholdsChanged | ServerSettingsChanged


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One point of the time series of one listener (STR-12).

    :ivar at: Unix time in seconds.
    """

    at: float
    client_id: str
    name: str
    source: str
    loss: float | None
    jitter_ms: float | None
    latency_ms: float | None
    bandwidth_mbps: float | None


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something worth telling the engineer later.

    :ivar at: Unix time in seconds.
    :ivar kind: a word for programs, such as ``device_lost``.
    """

    at: float
    kind: str
    message: str
    details: Mapping[str, Any]


class ISettings(Protocol):
    """The settings, seen from the rooms that follow or change them.

    Every ``set_`` returns a Deferred that fires with the new value once it is on disk and the
    subscribers have been told, or fails with :class:`RefusedError`; cancelling it does not undo
    the change.
    """

    @property
    def audio_config(self) -> AudioConfig: ...

    @property
    def channels(self) -> tuple[Channel, ...]:
        """All channels of this server, by id."""
        ...

    @property
    def thresholds(self) -> Thresholds: ...

    @property
    def settings(self) -> ServerSettings: ...

    def set_audio_config(
        self, change: AudioConfigChange, *, who: str, reason: str = ""
    ) -> Deferred[AudioConfig]: ...

    def set_channels(
        self, changes: Sequence[ChannelChange], *, who: str
    ) -> Deferred[tuple[Channel, ...]]: ...

    def set_thresholds(self, thresholds: Thresholds, *, who: str) -> Deferred[Thresholds]: ...

    def set_settings(
        self, changes: Mapping[str, object], *, who: str
    ) -> Deferred[ServerSettings]: ...

    def subscribe(self, callback: Callable[[SettingsChange], object]) -> Callable[[], None]:
        """Call ``callback`` once per change, in order; the returned callable ends that."""
        ...

    def note_quality(self, client_id: str, name: str, report: QualityReport) -> None:
        """Add a point to a listener's time series; written soon, not at once."""
        ...

    def quality_history(
        self, *, client_id: str | None = None, since: float = 0.0, limit: int = 1000
    ) -> Deferred[list[QualityRow]]:
        """The newest points, oldest first."""
        ...

    def events(self, *, since: float = 0.0, limit: int = 100) -> Deferred[list[EventRow]]:
        """What happened after ``since`` (Unix time), newest first, also what was not yet written.

        :param limit: at most 1,000.
        """
        ...


class IUsers(Protocol):
    """Who may change settings."""

    def has_users(self) -> bool: ...

    def save_password_now(self, user: str, password_hash: str) -> None:
        """Create or change a user, blocking; for start-up, before the reactor runs.

        :raises NotSavedError: nothing was written.
        """
        ...

    def password_hash(self, user: str) -> Deferred[str | None]: ...

    def save_password(self, user: str, password_hash: str) -> Deferred[None]: ...


def _none_of(value: object, allowed: Sequence[object]) -> str:
    return f"{value!r} is none of {', '.join(map(str, allowed))}"


def _given(change: Struct) -> dict[str, object]:
    fields = msgspec.structs.asdict(change)
    return {name: value for name, value in fields.items() if value is not UNSET}
