"""Telling a listener, or any other receiver, what flows: the ``stream`` message and the SDP.

Pure text and values made from an agreement and its RTP streams; nothing is remembered here.
"""

from __future__ import annotations

from collections.abc import Mapping

from m32net.streaming.negotiation import Agreement
from protocols.control import messages
from protocols.rtp import sdp
from protocols.rtp.extension import EVENT_FLAGS_ID, EVENT_FLAGS_URI, NTP64_ID, NTP64_URI
from protocols.rtp.packetizer import StreamSpec
from protocols.rtp.payload import ENCODING_NAMES, PT_MULTIOPUS, PT_OPUS


def sdp_path(client_id: str) -> str:
    return f"/sdp/{client_id}.sdp"


def stream_message(
    client_id: str, agreement: Agreement, spec: StreamSpec | None, rtp_port: int
) -> messages.Stream:
    """The ``stream`` message; without ``spec`` (all channels muted) it has no groups."""
    profile = agreement.profile
    assert agreement.udp_port is not None
    return messages.Stream(
        client_id=client_id,
        codec=profile.codec,
        sample_rate=profile.sample_rate,
        clock_rate=profile.clock_rate,
        frame_ms=agreement.packet_ms,
        layout=agreement.layout,
        rtp_port=rtp_port,
        udp_port=agreement.udp_port,
        sdp=sdp_path(client_id),
        groups=tuple(
            messages.StreamGroup(
                ssrc=group.ssrc,
                payload_type=group.payload_type,
                udp_port=group.udp_port,
                channels=group.channels,
            )
            for group in (spec.groups if spec is not None else ())
        ),
    )


def session_description(
    agreement: Agreement,
    spec: StreamSpec,
    *,
    server_address: str,
    server_name: str,
    session_id: int,
    version: int,
    names: Mapping[int, str],
) -> str:
    """The listener's streams as SDP (RFC 8866), one ``m=`` line a group.

    :param names: channel names by id, for the ``i=`` lines.
    """
    profile = agreement.profile
    media = []
    for group in spec.groups:
        pt = group.payload_type
        width = len(group.channels)
        fmtp: dict[str, str] = {}
        channels = width
        if pt == PT_OPUS:
            # RFC 7587 section 7: always announced as 48000/2, whatever is inside.
            fmtp, channels = sdp.opus_fmtp(profile.opus_bitrate), 2
        elif pt == PT_MULTIOPUS:
            fmtp = sdp.multiopus_fmtp(width)
        media.append(
            sdp.Media(
                port=group.udp_port,
                payload_type=pt,
                encoding=ENCODING_NAMES[pt],
                clock_rate=profile.clock_rate,
                channels=channels,
                fmtp=fmtp,
                ssrc=group.ssrc,
                cname=cname(server_name, server_address),
                packet_ms=agreement.packet_ms,
                rtcp_port=group.udp_port + 1,
                extensions={NTP64_ID: NTP64_URI, EVENT_FLAGS_ID: EVENT_FLAGS_URI},
                title=", ".join(
                    names.get(channel, f"CH{channel:02}") for channel in group.channels
                ),
            )
        )
    return sdp.write(
        sdp.SessionDescription(
            origin_address=server_address,
            address=spec.host,
            name=server_name,
            session_id=session_id,
            version=version,
            media=tuple(media),
        )
    )


def cname(server_name: str, server_address: str) -> str:
    """One canonical name for all streams of the server (RFC 3550 section 6.5.1)."""
    return f"{server_name}@{server_address}"
