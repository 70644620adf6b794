"""What ``m32net listen`` is told: its options and its environment, checked before anything starts.

Everything a person can get wrong here ends in one clear line.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from twisted.python import usage

from m32net.listener.address import AddressError, ServerAddress
from m32net.listener.server_api import Trust, TrustError
from m32net.listener.thresholds import ThresholdError, choose
from protocols.control.messages import (
    FRAME_MS,
    MAX_CHANNELS,
    MAX_NAME,
    MAX_PIN,
    SAMPLE_RATES,
)

CODECS: Final = ("opus", "L16", "L24")
LAYOUTS: Final = ("bundle", "mono")
DEFAULT_PORT: Final = 5004
MAX_FORCE_DELAY_MS: Final = 10_000.0


class ListenOptions(usage.Options):
    """Options of ``m32net listen URL``."""

    synopsis = "URL [options]"
    longdesc = (
        "Listens to a server. Without --play and --record it only measures. "
        "Environment: UDP_PORT, FORCE_DELAY_MS, JITTER_INTERPOLATE_MS, JITTER_DROP_MS."
    )
    optParameters: ClassVar[list[list[Any]]] = [
        [
            "udp-port",
            "p",
            None,
            "UDP port for audio, 0 for any free pair [UDP_PORT, or 5004].",
        ],
        ["channels", "c", None, "Channels, as in 1,2,5-8. [default: all there are]"],
        ["codec", None, None, f"{', '.join(CODECS)}. [default: the server's]"],
        ["layout", None, None, f"{' or '.join(LAYOUTS)}. [default: the server's]"],
        ["frame-ms", None, None, "2.5, 5, 10 or 20. [default: the server's]"],
        ["sample-rate", None, None, "48000, 44100, 32000 or 24000. [default: the server's]"],
        ["record", None, None, "Record every channel as a track of this WAV file."],
        ["record-mix", None, None, "Record the stereo mix to this WAV file."],
        ["duration", "d", None, "Stop after so many seconds."],
        ["device", None, None, "Play on the output with this in its name."],
        ["mix", "m", None, "Mix file (JSON): a device's mixes, or one exported mix."],
        ["preset", None, None, "Use this preset of the mix file."],
        ["name", "n", None, "Name of this listener on the engineer's page."],
        ["interface", "i", "", "Use this local IPv4 address only."],
        ["pin", None, None, "The PIN, if the server asks for one."],
        ["ca", None, None, "Trust servers with a certificate by the CA in this PEM file."],
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        ["play", None, "Play the mix on the sound card."],
        ["json", None, "Print one JSON object a second and a summary."],
        ["once", None, "Do not come back after a failure: end with status 1."],
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As usual, but the address may stand before the options."""
        given = sys.argv[1:] if options is None else list(options)
        try:
            pairs, rest = getopt.gnu_getopt(given, self.shortOpt, self.longOpt)
        except getopt.GetoptError as error:
            raise usage.UsageError(str(error)) from None
        ordered: list[str] = []
        for name, value in pairs:
            takes = name.startswith("--") and f"{name[2:]}=" in self.longOpt
            takes = takes or f"{name[1:]}:" in self.shortOpt
            ordered += [name, value] if takes else [name]
        parse: Any = super().parseOptions  # untyped in Twisted
        parse([*ordered, "--", *rest])

    def parseArgs(self, *arguments: str) -> None:
        """The server's address, and nothing else."""
        if len(arguments) != 1:
            raise usage.UsageError("listen needs one URL, as http://192.168.1.10:8080/")
        try:
            self["address"] = ServerAddress.parse(arguments[0])
        except AddressError as error:
            raise usage.UsageError(str(error)) from None

    def postOptions(self) -> None:
        """Check every value here, so that nothing starts that cannot go on."""
        self["channels"] = _channels(self["channels"])
        self["codec"] = _choice("codec", self["codec"], CODECS)
        self["layout"] = _choice("layout", self["layout"], LAYOUTS)
        self["frame-ms"] = _number_of("frame-ms", self["frame-ms"], FRAME_MS)
        rate = _number_of("sample-rate", self["sample-rate"], SAMPLE_RATES)
        self["sample-rate"] = None if rate is None else int(rate)
        self["duration"] = _duration(self["duration"])
        self["name"] = _text("name", self["name"], MAX_NAME)
        self["pin"] = _text("pin", self["pin"], MAX_PIN)
        self["ca"] = _trust(self["ca"])
        if self["udp-port"] is not None:
            self["udp-port"] = _port("--udp-port", self["udp-port"])
        if self["preset"] is not None and self["mix"] is None:
            raise usage.UsageError("--preset needs --mix FILE, where it is")


class Environment:
    """What ``m32net listen`` takes from the environment (STR-24, STR-27).

    :raises usage.UsageError: a variable cannot be used.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        try:
            self.thresholds = choose(variables, None)
        except ThresholdError as error:
            raise usage.UsageError(str(error)) from None
        port = variables.get("UDP_PORT", "").strip()
        self.udp_port = _port("UDP_PORT", port) if port else None
        self.force_delay_ms = self._delay(variables.get("FORCE_DELAY_MS", "").strip() or "0")

    @staticmethod
    def _delay(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= MAX_FORCE_DELAY_MS:
            raise usage.UsageError(
                f"FORCE_DELAY_MS={_shown(text)}: a number of ms from 0 to {MAX_FORCE_DELAY_MS:g} "
                "is needed"
            )
        return value


def _choice(name: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    for choice in choices:
        if choice.lower() == value.lower():
            return choice
    raise usage.UsageError(f"--{name} {value}: choose one of {', '.join(choices)}")


def _number_of(name: str, value: str | None, choices: tuple[float, ...]) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if number not in choices:
        named = ", ".join(f"{choice:g}" for choice in choices)
        raise usage.UsageError(f"--{name} {value}: choose one of {named}")
    return number


def _duration(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise usage.UsageError(f"--duration {value}: a number of seconds over 0 is needed")
    return seconds


def _port(name: str, value: Any) -> int:
    try:
        port = int(value)
    except ValueError:
        port = -1
    if port != 0 and not 1024 <= port <= 65_534:
        raise usage.UsageError(f"{name} {_shown(value)}: a port from 1024 to 65534 is needed, or 0")
    return port


def _text(name: str, value: str | None, most: int) -> str | None:
    if value is not None and len(value) > most:
        raise usage.UsageError(f"--{name} {_shown(value)}: {len(value)} characters; {most} fit")
    return value


def _trust(value: str | None) -> Trust | None:
    if value is None:
        return None
    try:
        return Trust.load(Path(value))
    except TrustError as error:
        raise usage.UsageError(f"--ca {error}") from None


def _shown(text: str) -> str:
    """What was given, in one line that is not too long."""
    text = " ".join(str(text).split())
    return text if len(text) <= 40 else f"{text[:39]}…"


def _channels(value: str | None) -> tuple[int, ...] | None:
    """``1,2,5-8`` as ids, in that order."""
    if value is None:
        return None
    found: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            low, high = 1, 0
        if not 1 <= low <= high <= MAX_CHANNELS:
            raise usage.UsageError(f"--channels {value}: {part.strip()!r} is none; use 1,2,5-8")
        found += range(low, high + 1)
    if len(set(found)) != len(found):
        raise usage.UsageError(f"--channels {value}: a channel is there twice")
    return tuple(found)
