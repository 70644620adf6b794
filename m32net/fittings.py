"""What the start-up configuration means for each room, and what is said at the start.

Functions of values only; :mod:`m32net.server` hands their results to the rooms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from m32net.config import ServerConfig
from m32net.settings import AudioConfig, AudioConfigChange, Channel
from m32net.streaming.negotiation import AudioOffer
from m32net.streaming.transmission import TransmissionConfig
from protocols.control.limits import ServerLimits
from protocols.tcp.admission import AdmissionLimits
from protocols.tcp.options import SocketOptions

CONNECTIONS_BESIDES: Final = 80
"""Connections kept for pages, REST calls and scrapes on top of one per listener."""


def chosen_audio(config: ServerConfig) -> AudioConfigChange:
    """The audio format as far as it was given at the start; the rest is as stored."""
    return AudioConfigChange(**_given(config, "sample_rate", "codec", "bitrate", "frame_us"))


def chosen_settings(config: ServerConfig) -> dict[str, Any]:
    """The same for single settings, by name."""
    return _given(config, "dscp", "max_listeners", "heartbeat_timeout_s")


def audio_offer(config: AudioConfig, channels: Iterable[Channel], *, opus: bool) -> AudioOffer:
    """What listeners are offered."""
    return AudioOffer(
        channels=tuple(one.id for one in channels if one.enabled),
        codec=config.codec,
        sample_rate=config.sample_rate,
        bitrate=config.bitrate,
        frame_us=config.frame_us,
        layout=config.layout,
        opus=opus,
    )


def transmission(config: ServerConfig, dscp: int, *, share_ports: bool) -> TransmissionConfig:
    """How audio leaves the machine."""
    return TransmissionConfig(
        interface=config.interface or "",
        rtp_port=config.rtp_port,
        dscp=dscp,
        send_method=config.send_method,
        server_name=config.name,
        share_ports=share_ports,
    )


def session_limits(config: ServerConfig, heartbeat_timeout_s: float) -> ServerLimits:
    """What control sessions are held to."""
    return ServerLimits(
        heartbeat_timeout_s=heartbeat_timeout_s,
        ping_interval_s=config.ping_interval_s,
        pong_timeout_s=config.pong_timeout_s,
        message_ttl_s=config.message_ttl_s,
    )


def admission_limits(config: ServerConfig, max_listeners: int) -> AdmissionLimits:
    """Who is let in: at least every listener, and one address never more than half of all."""
    most = max(config.max_connections, max_listeners + CONNECTIONS_BESIDES)
    return AdmissionLimits(
        max_connections=most,
        max_of_one=most // 2,
        per_minute=config.connections_per_minute,
        block_s=config.block_s,
        exempt=config.exempt,
    )


def socket_options(config: ServerConfig) -> SocketOptions:
    """What the sockets of TCP connections are told (CON-1)."""
    return SocketOptions(
        nodelay=config.tcp_nodelay,
        keepalive_s=config.tcp_keepalive_s,
        keepalive_interval_s=config.tcp_keepalive_interval_s,
        keepalive_probes=config.tcp_keepalive_probes,
        buffer_bytes=config.tcp_buffer_kib * 1024,
        linger_s=config.tcp_linger_s,
        user_timeout_s=config.tcp_user_timeout_s,
        retry_s=config.tcp_retry_s,
        quickack=config.tcp_quickack,
    )


def on_interface(endpoint: str, interface: str | None) -> str:
    """The endpoint description, kept on one address unless it names one itself."""
    if interface and endpoint.startswith(("tcp:", "ssl:")) and ":interface=" not in endpoint:
        return f"{endpoint}:interface={interface}"
    return endpoint


def where(config: ServerConfig) -> str:
    """`` on ADDRESS``, if the server keeps to one."""
    return f" on {config.interface}" if config.interface else ""


def greeting(
    config: ServerConfig,
    port: int,
    urls: Sequence[str],
    secure: Sequence[str],
    *,
    certified: bool,
) -> list[str]:
    """What is printed below the QR code: how to get in.

    :param port: of the pages.
    :param certified: phones can install this server's own CA.
    """
    lines = [
        f"  Musicians:  {'  '.join(urls)}",
        f"  Engineer:   {urls[0]}admin",
        f"  Listen:     m32net listen {urls[0]}",
    ]
    if config.mdns:
        lines.insert(1, f"  By name:    http://{config.name}.local:{port}/")
    if secure:
        lines.append(f"  With TLS:   {'  '.join(secure)}")
    if secure and certified:
        lines.append(f"  To trust:   {urls[0]}ca.crt  (once on every phone; see /admin)")
    return lines


def _given(config: ServerConfig, *names: str) -> dict[str, Any]:
    """The options of these names that were given."""
    values = {name: getattr(config, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
