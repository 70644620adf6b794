"""Start-up configuration: command line, then ``M32NET_*``, then a TOML file, then defaults.

One table, :data:`SETTINGS`, names every option with its parser, default and help; the command
line's options, the environment's names and the TOML keys all come from it.  What the engineer
changes while the server runs (channel names, audio format, thresholds) lives in the store, not
here; an option given at start-up overrides what is stored.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from m32net.streaming.profile import (
    CODECS,
    FRAME_US,
    MAX_BITRATE,
    MIN_BITRATE,
    SAMPLE_RATES,
    Codec,
)

ENVIRONMENT_PREFIX: Final = "M32NET_"


class ConfigError(Exception):
    """A setting that cannot be used; the message is one line: which, why and what to do."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything that is fixed for one run of the server.

    ``None`` means that the stored setting (or the system) decides.
    """

    state_dir: Path
    source: str = "demo"
    channels: int = 32
    sample_rate: int | None = None
    codec: Codec | None = None
    bitrate: int | None = None
    frame_us: int | None = None
    opus_complexity: int = 5
    encoder_threads: int = 2
    http: str = "tcp:8080"
    https: str | None = "tcp:8443"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    peer_ca: Path | None = None
    interface: str | None = None
    rtp_port: int = 5004
    send_method: str = "auto"
    dscp: int | None = None
    max_listeners: int | None = None
    max_connections: int = 100
    connections_per_minute: int = 10
    exempt: tuple[str, ...] = ("127.0.0.1", "::1")
    block_s: float = 3600.0
    tcp_nodelay: bool = True
    tcp_keepalive_s: float = 30.0
    tcp_keepalive_interval_s: float = 10.0
    tcp_keepalive_probes: int = 9
    tcp_buffer_kib: int = 64
    tcp_linger_s: float = 5.0
    tcp_user_timeout_s: float = 60.0
    tcp_retry_s: float = 1.0
    tcp_quickack: bool = True
    mptcp: bool = False
    ping_interval_s: float = 30.0
    pong_timeout_s: float = 90.0
    message_ttl_s: float = 30.0
    compression: bool = True
    heartbeat_timeout_s: float | None = None
    grace_s: float = 5.0
    name: str = "m32-server"
    mdns: bool = True
    take_over: bool = False
    log_level: str = "info"


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"{value} is outside {low}..{high}")
        return value

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise ValueError(f"{text} is outside {low:g}..{high:g}")
        return value

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for word in allowed:
            if text.lower() == word.lower():
                return word
        raise ValueError(f"{text!r} is none of {', '.join(allowed)}")

    return parse


def _rate(text: str) -> int:
    if text not in {str(rate) for rate in SAMPLE_RATES}:
        raise ValueError(f"{text!r} is none of {', '.join(map(str, SAMPLE_RATES))}")
    return int(text)


def _frame(text: str) -> int:
    by_name = {f"{us / 1000:g}": us for us in FRAME_US}
    try:
        return by_name[f"{float(text):g}"]
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is none of {', '.join(by_name)} (ms)") from None


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address of this machine") from None


def _flag(text: str) -> bool:
    word = text.lower()
    if word in {"1", "yes", "true", "on"}:
        return True
    if word in {"0", "no", "false", "off"}:
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def _networks(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if parts == ("none",):
        return ()
    for part in parts:
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError:
            raise ValueError(f"{part!r} is no IP address or network, such as 10.0.0.0/8") from None
    return parts


def _endpoint_or_none(text: str) -> str | None:
    return None if text.lower() in {"no", "none", "off"} else text


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _source(text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind in {"demo", "test"} and not rest:
        return text
    if kind == "device" or (kind == "file" and rest):
        return text
    raise ValueError(f"{text!r} is none of demo, test, file:PATH, device, device:NAME")


def _name(text: str) -> str:
    if not 1 <= len(text.encode()) <= 63 or "." in text:
        raise ValueError(f"{text!r} is not a name of 1 to 63 bytes without dots")
    return text


@dataclass(frozen=True, slots=True)
class Setting:
    """One option.

    :ivar option: its name on the command line; ``M32NET_OPTION_NAME`` and the TOML key follow.
    :ivar field: the field of :class:`ServerConfig` it fills.
    :ivar parse: makes the value from text, or raises ValueError with a readable reason.
    :ivar default: what the help shows as default.
    """

    option: str
    field: str
    parse: Callable[[str], Any]
    default: str | None
    help: str

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.option.upper().replace("-", "_")


def default_state_dir(environ: Mapping[str, str]) -> str:
    """Where state goes if nobody says: systemd's directory, else the XDG one."""
    if environ.get("STATE_DIRECTORY"):
        return environ["STATE_DIRECTORY"].split(":")[0]
    home = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", "/"), ".local/state")  # noqa: PTH118
    return os.path.join(home, "m32net")  # noqa: PTH118


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "state-dir",
        "state_dir",
        _path,
        None,
        "Directory of the settings database. [default: ~/.local/state/m32net]",
    ),
    Setting(
        "source",
        "source",
        _source,
        "demo",
        "Where audio comes from: demo (a built-in band), test (known values), file:PATH "
        "(WAV or FLAC, looped), device (the first M32 or X32), device:NAME.",
    ),
    Setting("channels", "channels", _integer(1, 64), "32", "Channels to capture, 1 to 64."),
    Setting(
        "sample-rate",
        "sample_rate",
        _rate,
        None,
        "Best rate offered to listeners: 48000, 44100, 32000 or 24000. Capture is always at "
        "48000. [default: as stored, 48000 at first]",
    ),
    Setting(
        "codec",
        "codec",
        _choice(*CODECS),
        None,
        "Codec for listeners that do not choose: opus, L16 or L24. [default: as stored, opus]",
    ),
    Setting(
        "bitrate",
        "bitrate",
        _integer(MIN_BITRATE, MAX_BITRATE),
        None,
        "Opus bit/s for one channel. [default: as stored, 96000]",
    ),
    Setting(
        "frame-ms",
        "frame_us",
        _frame,
        None,
        "Frame length: 2.5, 5, 10 or 20 ms. [default: as stored, 5]",
    ),
    Setting(
        "opus-complexity",
        "opus_complexity",
        _integer(0, 10),
        "5",
        "CPU the Opus encoder may use, 0 to 10.",
    ),
    Setting(
        "encoder-threads", "encoder_threads", _integer(1, 16), "2", "Threads that encode channels."
    ),
    Setting("http", "http", str, "tcp:8080", "Endpoint of the web server, e.g. tcp:8080."),
    Setting(
        "https",
        "https",
        _endpoint_or_none,
        "tcp:8443",
        "Endpoint of the web server with TLS, e.g. tcp:8443; no: without TLS.",
    ),
    Setting(
        "tls-certificate",
        "tls_certificate",
        _path,
        None,
        "PEM file with your own certificate and its chain. [default: made by a local CA in the "
        "state directory]",
    ),
    Setting("tls-key", "tls_key", _path, None, "PEM file with the key of --tls-certificate."),
    Setting(
        "peer-ca",
        "peer_ca",
        _path,
        None,
        "PEM file with the CA certificates of other m32net servers that may hand listeners over "
        "to this one, and to which it may. [default: this server's own CA]",
    ),
    Setting(
        "interface",
        "interface",
        _address,
        None,
        "Keep everything (HTTP, RTP, mDNS) on this IPv4 address. [default: all]",
    ),
    Setting(
        "rtp-port",
        "rtp_port",
        _integer(1024, 65534),
        "5004",
        "UDP port audio is sent from; RTCP uses the next one.",
    ),
    Setting(
        "send-method",
        "send_method",
        _choice("auto", "gso", "sendmmsg", "sendto"),
        "auto",
        "How packets are handed to the kernel; auto takes the fastest that works.",
    ),
    Setting("dscp", "dscp", _integer(0, 63), None, "DSCP of audio. [default: as stored, 46 (EF)]"),
    Setting(
        "max-listeners",
        "max_listeners",
        _integer(1, 10_000),
        None,
        "Listeners at most. [default: as stored, 20]",
    ),
    Setting(
        "max-connections",
        "max_connections",
        _integer(2, 100_000),
        "100",
        "TCP connections at most (raised to fit max-listeners).",
    ),
    Setting(
        "connections-per-minute",
        "connections_per_minute",
        _integer(1, 1_000_000),
        "10",
        "TCP connections a minute from one address; more are refused.",
    ),
    Setting(
        "exempt",
        "exempt",
        _networks,
        "127.0.0.1,::1",
        "Addresses and networks without that limit, such as a proxy's; none: no such.",
    ),
    Setting(
        "block",
        "block_s",
        _number(1, 604_800),
        "3600",
        "Seconds for which an address is shut out that goes on regardless of the limit.",
    ),
    Setting("tcp-nodelay", "tcp_nodelay", _flag, "yes", "TCP_NODELAY on connections: yes or no."),
    Setting(
        "tcp-keepalive",
        "tcp_keepalive_s",
        _number(0, 7200),
        "30",
        "Seconds of silence before TCP asks whether the peer is still there; 0: never.",
    ),
    Setting(
        "tcp-keepalive-interval",
        "tcp_keepalive_interval_s",
        _number(1, 600),
        "10",
        "Seconds between those questions.",
    ),
    Setting(
        "tcp-keepalive-probes",
        "tcp_keepalive_probes",
        _integer(1, 100),
        "9",
        "Unanswered questions after which the connection is lost.",
    ),
    Setting(
        "tcp-buffer",
        "tcp_buffer_kib",
        _integer(0, 16_384),
        "64",
        "KiB of the kernel's buffers of a connection, each way; 0: as the kernel likes.",
    ),
    Setting(
        "tcp-linger",
        "tcp_linger_s",
        _number(0, 120),
        "5",
        "Seconds a closed connection may take to deliver what was sent.",
    ),
    Setting(
        "tcp-user-timeout",
        "tcp_user_timeout_s",
        _number(0, 3600),
        "60",
        "Seconds that sent data may stay unacknowledged; 0: as the kernel likes.",
    ),
    Setting(
        "tcp-retry",
        "tcp_retry_s",
        _number(0, 120),
        "1",
        "Seconds after which TCP at the latest sends again what was not acknowledged, from 1 on "
        "(Linux 6.15); 0: as the kernel likes.",
    ),
    Setting("tcp-quickack", "tcp_quickack", _flag, "yes", "TCP_QUICKACK: yes or no."),
    Setting("mptcp", "mptcp", _flag, "no", "Multipath TCP, where the kernel has it: yes or no."),
    Setting(
        "ping-interval",
        "ping_interval_s",
        _number(1, 3600),
        "30",
        "Seconds between the pings of a control session.",
    ),
    Setting(
        "pong-timeout",
        "pong_timeout_s",
        _number(1, 3600),
        "90",
        "Seconds without an answer to pings after which a control session is closed.",
    ),
    Setting(
        "message-ttl",
        "message_ttl_s",
        _number(1, 3600),
        "30",
        "Seconds a message to a slow reader may wait before it is dropped.",
    ),
    Setting(
        "compression",
        "compression",
        _flag,
        "yes",
        "Compress large messages and answers where it pays: yes or no.",
    ),
    Setting(
        "heartbeat-timeout",
        "heartbeat_timeout_s",
        _number(1, 3600),
        None,
        "Seconds without a heartbeat after which a listener's audio stops. "
        "[default: as stored, 30]",
    ),
    Setting(
        "grace",
        "grace_s",
        _number(0, 300),
        "5",
        "Seconds that streams outlive a lost control connection.",
    ),
    Setting("name", "name", _name, "m32-server", "Name of this server (NAME.local by mDNS)."),
    Setting("mdns", "mdns", _flag, "yes", "Announce the server by mDNS: yes or no."),
    Setting(
        "take-over",
        "take_over",
        _flag,
        "no",
        "Start beside the server that uses this state directory and these ports now, and follow "
        "it when its listeners have been moved (`m32net migrate`): yes or no.",
    ),
    Setting(
        "log-level",
        "log_level",
        _choice("debug", "info", "warn", "error"),
        "info",
        "Least level that is logged: debug, info, warn or error.",
    ),
)


def read_toml(path: Path) -> dict[str, str]:
    """The settings of a TOML file as text, keyed by option name.

    Keys are option names, with dashes or underscores, at top level or in a table ``[m32net]``.

    :raises ConfigError: the file can't be read, is not TOML, or has an unknown key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    table = document.get("m32net", document)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [m32net] must be a table of settings")
    known = {setting.option for setting in SETTINGS}
    values: dict[str, str] = {}
    for key, value in table.items():
        option = key.replace("_", "-")
        if option not in known:
            raise ConfigError(f"{path}: unknown setting {key!r}; `twistd m32net --help` lists all")
        if isinstance(value, bool):
            values[option] = "yes" if value else "no"
        elif isinstance(value, str | int | float):
            values[option] = str(value)
        else:
            raise ConfigError(f"{path}: {key} must be a text, a number or true/false")
    return values


def resolve(
    command_line: Mapping[str, str | None],
    environ: Mapping[str, str],
    toml: Path | None = None,
) -> ServerConfig:
    """Combine the layers into a :class:`ServerConfig`.

    :param command_line: option name to text, None where the option was not given.
    :raises ConfigError: a value that cannot be used, with the layer it came from.
    """
    from_file = read_toml(toml) if toml is not None else {}
    values: dict[str, Any] = {"state_dir": _path(default_state_dir(environ))}
    for setting in SETTINGS:
        for text, where in (
            (command_line.get(setting.option), f"--{setting.option}"),
            (environ.get(setting.variable), setting.variable),
            (from_file.get(setting.option), f"{toml}: {setting.option}"),
        ):
            if text is None:
                continue
            try:
                values[setting.field] = setting.parse(text)
            except ValueError as reason:
                raise ConfigError(f"{where}: {reason}") from None
            break
    return ServerConfig(**values)


_FIELDS = {field.name for field in fields(ServerConfig)}
if {setting.field for setting in SETTINGS} != _FIELDS:  # pragma: no cover - a slip of ours
    raise TypeError("SETTINGS and ServerConfig differ")
