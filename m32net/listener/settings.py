"""A musician's mix: what STR-21 stores per channel, the master, and named presets.

Values, their JSON and the one file they live in.  Nothing here touches audio; the mixer
(:mod:`m32net.listener.mixer`) turns these numbers into gains and filters.
"""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

T = TypeVar("T")

MAX_CHANNELS: Final = 64
MAX_PRESETS: Final = 100
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_VOLUME: Final = 4.0
"""Linear, as a fader's full travel: +12 dB."""
EQ_RANGE_DB: Final = 15.0

Name = Annotated[str, Meta(max_length=256)]
PresetName = Annotated[str, Meta(min_length=1, max_length=100)]
Volume = Annotated[float, Meta(ge=0.0, le=MAX_VOLUME)]
EqGain = Annotated[float, Meta(ge=-EQ_RANGE_DB, le=EQ_RANGE_DB)]


class MixError(Exception):
    """A mix that cannot be used; the text names the file and the field, and what is wrong."""


class Eq(Struct, frozen=True, omit_defaults=True):
    """Gains of the three bands in dB; all 0 is flat and costs nothing."""

    low: EqGain = 0.0
    mid: EqGain = 0.0
    high: EqGain = 0.0

    @property
    def flat(self) -> bool:
        return self.low == self.mid == self.high == 0.0


class Limit(Struct, frozen=True, omit_defaults=True):
    """A limiter's settings.

    :ivar ceiling_db: no sample leaves louder than this, in dB of full scale.
    :ivar release_ms: time in which a reduction falls to a third (1/e).
    """

    ceiling_db: Annotated[float, Meta(ge=-60.0, le=0.0)] = -6.0
    release_ms: Annotated[float, Meta(ge=1.0, le=5000.0)] = 100.0
    enabled: bool = True


class ChannelMix(Struct, frozen=True, omit_defaults=True):
    """One channel in a musician's mix (STR-21).

    :ivar id: the server's channel, 1..64.
    :ivar mute: silent here; a muted channel is not sent either (STR-30).
    :ivar hidden: not shown; it sounds all the same.
    :ivar order: place on the surface, smallest first.
    :ivar volume: linear gain 0..4; 1 is unity, 4 is +12 dB.
    :ivar solo: while any channel is soloed, only soloed ones sound.
    :ivar pan: -1 left .. 0 centre .. +1 right, equal power (-3 dB at the centre).
    :ivar eq: gains in dB, each -15..+15.
    :ivar limit: true for the default limiter, false for none, or its settings.
    :ivar color: as in ``#rrggbb``.
    :ivar image: name or data URL of a picture, for surfaces that show one.
    :ivar sample_rate: Hz, if the musician wants another than the server offers.
    :ivar compression: ``opus``, ``none`` (L16) or ``L24``, likewise.
    """

    id: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]
    name: Name = ""
    mute: bool = False
    hidden: bool = False
    order: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    volume: Volume = 1.0
    solo: bool = False
    pan: Annotated[float, Meta(ge=-1.0, le=1.0)] = 0.0
    eq: Eq = Eq()
    limit: Limit | bool = False
    color: Annotated[str, Meta(max_length=64)] | None = None
    image: Annotated[str, Meta(max_length=65_536)] | None = None
    sample_rate: Literal[48_000, 44_100, 32_000, 24_000] | None = None
    compression: Literal["opus", "none", "L16", "L24"] | None = None

    @property
    def limiter(self) -> Limit | None:
        """The limiter in force, whichever way it was written; None if there is none."""
        return _limiter(self.limit, Limit())


class Master(Struct, frozen=True, omit_defaults=True):
    """The stereo sum.  Its limiter protects hearing, so it is on unless it is taken off."""

    volume: Volume = 1.0
    limit: Limit | bool = True

    @property
    def limiter(self) -> Limit | None:
        return _limiter(self.limit, Limit(ceiling_db=-1.0))


class Mix(Struct, frozen=True, omit_defaults=True):
    """All channels of one musician and the master."""

    channels: Annotated[tuple[ChannelMix, ...], Meta(max_length=MAX_CHANNELS)] = ()
    master: Master = Master()

    def __post_init__(self) -> None:
        seen: set[int] = set()
        for channel in self.channels:
            if channel.id in seen:
                raise ValueError(f"channel {channel.id} is in the mix twice")
            seen.add(channel.id)

    def channel(self, channel_id: int) -> ChannelMix:
        """The settings of a channel; defaults for one the mix does not mention."""
        for channel in self.channels:
            if channel.id == channel_id:
                return channel
        return ChannelMix(channel_id)

    def with_channel(self, channel: ChannelMix) -> Mix:
        """The mix with ``channel`` put in or put in place of the one with its id."""
        others = [old for old in self.channels if old.id != channel.id]
        ordered = sorted([*others, channel], key=lambda one: (one.order, one.id))
        return Mix(tuple(ordered), self.master)


class MixBook(Struct, frozen=True, omit_defaults=True):
    """What one device stores: the mix in use and its named presets."""

    current: Mix = Mix()
    presets: Annotated[dict[PresetName, Mix], Meta(max_length=MAX_PRESETS)] = {}

    def preset(self, name: str) -> Mix:
        """The mix saved under ``name``.

        :raises MixError: there is none; the text lists those that are.
        """
        try:
            return self.presets[name]
        except KeyError:
            known = ", ".join(sorted(self.presets)) or "none"
            raise MixError(f"no preset {name!r}; there are: {known}") from None

    def save_preset(self, name: str, mix: Mix | None = None) -> MixBook:
        """The book with ``mix`` (or the one in use) under ``name``.

        :raises MixError: the name is empty or too long, or the book is full.
        """
        if not 1 <= len(name) <= 100:
            raise MixError("a preset's name has 1 to 100 characters")
        if name not in self.presets and len(self.presets) >= MAX_PRESETS:
            raise MixError(f"the book holds {MAX_PRESETS} presets; delete one first")
        return MixBook(self.current, {**self.presets, name: self.current if mix is None else mix})

    def delete_preset(self, name: str) -> MixBook:
        """The book without ``name``.

        :raises MixError: there is no such preset.
        """
        self.preset(name)
        return MixBook(self.current, {k: v for k, v in self.presets.items() if k != name})


def export_mix(mix: Mix) -> bytes:
    """One mix as JSON, to be given to somebody else."""
    return msgspec.json.format(msgspec.json.encode(mix), indent=2)


def import_mix(data: bytes | str) -> Mix:
    """Read what :func:`export_mix` wrote, or any JSON of that shape.

    Fields that are not known are ignored, so that a newer version's mix can be read.

    :raises MixError: it is no JSON, or a field is wrong; the text names it.
    """
    return _decode(data, Mix)


def load_book(path: Path) -> MixBook:
    """Read a mix file: a whole book, or a single exported mix.

    :raises MixError: it cannot be read, is no JSON or holds a wrong field.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise MixError(f"{path}: larger than {MAX_FILE_BYTES // 1024} KiB, this is no mix")
        data = path.read_bytes()
    except OSError as error:
        raise MixError(f"{path}: {error.strerror}") from None
    try:
        fields = _decode(data, dict[str, msgspec.Raw])
        if fields.keys() & {"channels", "master"}:
            return MixBook(current=import_mix(data))
        return _decode(data, MixBook)
    except MixError as error:
        raise MixError(f"{path}: {error}") from None


def save_book(book: MixBook, path: Path) -> None:
    """Write a mix file so that a crash leaves either the old one or the new one.

    :raises MixError: it cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(book), indent=2) + b"\n"
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()
        raise MixError(f"{path}: {error.strerror}") from None


def _limiter(limit: Limit | bool, default: Limit) -> Limit | None:
    if isinstance(limit, Limit):
        return limit if limit.enabled else None
    return default if limit else None


def _decode(data: bytes | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise MixError(_readable(str(error))) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MixError(f"this is no JSON: {error}") from None


def _readable(reason: str) -> str:
    """``Expected `float` <= 1.0 - at `$.channels[2].pan``` as ``channels[2].pan: expected …``."""
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", reason, re.DOTALL)
    if match is None or not match[2]:
        return reason
    return f"{match[2]}: {match[1][:1].lower()}{match[1][1:]}"
