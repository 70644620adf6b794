"""Session descriptions (RFC 8866) of m32net's streams, as ffmpeg, GStreamer and DAWs read them.

Text to values and back.  One ``m=`` line is one RTP stream (one group of channels).  The
description is declarative: it is handed to a receiver, hence ``a=recvonly`` (RFC 8866
section 6.7).  MULTIOPUS parameters follow what GStreamer and Chromium use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from protocols.errors import RemoteProtocolError

MAX_LINES: Final = 4096
DIRECTIONS: Final = ("recvonly", "sendonly", "sendrecv", "inactive")


@dataclass(frozen=True, slots=True)
class Media:
    """One ``m=audio`` section.

    :ivar port: UDP port the receiver binds for RTP.
    :ivar channels: of the ``a=rtpmap`` line; for ``opus`` it is always 2 (RFC 7587 section 7).
    :ivar fmtp: format parameters in order, for instance ``{"sprop-stereo": "0"}``.
    :ivar packet_ms: ``a=ptime``; None leaves the line out.
    :ivar rtcp_port: ``a=rtcp`` (RFC 3605); None leaves the line out.
    :ivar extensions: ``a=extmap``: id to URI (RFC 8285).
    :ivar title: ``i=``, what a person calls the stream.
    :ivar attributes: any other ``a=`` lines of the section, as ``name`` or ``name:value``.
    """

    port: int
    payload_type: int
    encoding: str
    clock_rate: int
    channels: int = 1
    fmtp: dict[str, str] = field(default_factory=dict)
    ssrc: int | None = None
    cname: str | None = None
    packet_ms: float | None = None
    rtcp_port: int | None = None
    extensions: dict[int, str] = field(default_factory=dict)
    direction: str = "recvonly"
    title: str = ""
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionDescription:
    """A whole description.

    :ivar origin_address: the server's address (``o=``).
    :ivar address: where the media is sent to (``c=``), the listener's address for unicast.
    :ivar session_id: numeric, unique for the origin; ``version`` rises with each change.
    """

    origin_address: str
    address: str
    name: str
    session_id: int = 0
    version: int = 0
    username: str = "-"
    media: tuple[Media, ...] = ()
    attributes: tuple[str, ...] = ()


def opus_fmtp(bitrate: int | None = None, max_playback_rate: int | None = None) -> dict[str, str]:
    """Format parameters of a mono ``opus`` stream (RFC 7587 section 6.1)."""
    parameters = {"sprop-stereo": "0", "stereo": "0", "cbr": "1"}
    if max_playback_rate is not None:
        parameters["sprop-maxcapturerate"] = str(max_playback_rate)
    if bitrate is not None:
        parameters["maxaveragebitrate"] = str(bitrate)
    return parameters


def multiopus_fmtp(channels: int) -> dict[str, str]:
    """Format parameters of N uncoupled streams (mapping family 255 of RFC 7845)."""
    return {
        "num_streams": str(channels),
        "coupled_streams": "0",
        "channel_mapping": ",".join(map(str, range(channels))),
    }


def write(description: SessionDescription) -> str:
    """The description as text with CRLF line ends (RFC 8866 section 5)."""
    family = _family(description.origin_address)
    lines = [
        "v=0",
        f"o={description.username} {description.session_id} {description.version} "
        f"IN {family} {description.origin_address}",
        f"s={_line(description.name) or '-'}",
        f"c=IN {_family(description.address)} {description.address}",
        "t=0 0",
        *(f"a={_line(attribute)}" for attribute in description.attributes),
    ]
    for media in description.media:
        lines += _media_lines(media)
    return "\r\n".join(lines) + "\r\n"


def parse(text: str) -> SessionDescription:
    """Read a description; lines it has no use for are skipped.

    :raises RemoteProtocolError: no SDP, or a malformed line of the kinds we use.
    """
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if len(lines) > MAX_LINES:
        raise RemoteProtocolError("SDP: too many lines")
    session: list[tuple[str, str]] = []
    sections: list[list[tuple[str, str]]] = []
    for line in lines:
        if len(line) < 2 or line[1] != "=":
            raise RemoteProtocolError(f"SDP: not a line: {line[:40]!r}")
        kind, value = line[0], line[2:]
        if kind == "m":
            sections.append([])
        (sections[-1] if sections else session).append((kind, value))
    if not session or session[0] != ("v", "0"):
        raise RemoteProtocolError("SDP: does not begin with v=0")
    try:
        return _parse_session(session, sections)
    except (ValueError, LookupError) as error:
        raise RemoteProtocolError(f"SDP: {error}") from None


def _family(address: str) -> str:
    return "IP6" if ":" in address else "IP4"


def _line(text: str) -> str:
    """A text without the characters that would end its line."""
    return text.replace("\r", " ").replace("\n", " ").replace("\0", " ")


def _media_lines(media: Media) -> list[str]:
    lines = [f"m=audio {media.port} RTP/AVP {media.payload_type}"]
    if media.title:
        lines.append(f"i={_line(media.title)}")
    lines.append(
        f"a=rtpmap:{media.payload_type} {media.encoding}/{media.clock_rate}/{media.channels}"
    )
    if media.fmtp:
        parameters = ";".join(
            f"{name}={value}" if value else name for name, value in media.fmtp.items()
        )
        lines.append(f"a=fmtp:{media.payload_type} {parameters}")
    if media.packet_ms is not None:
        lines.append(f"a=ptime:{media.packet_ms:g}")
    lines += [f"a=extmap:{identifier} {uri}" for identifier, uri in media.extensions.items()]
    if media.ssrc is not None:
        cname = f" cname:{_line(media.cname)}" if media.cname else ""
        lines.append(f"a=ssrc:{media.ssrc}{cname}")
    if media.rtcp_port is not None:
        lines.append(f"a=rtcp:{media.rtcp_port}")
    lines.append(f"a={media.direction}")
    lines += [f"a={_line(attribute)}" for attribute in media.attributes]
    return lines


def _parse_session(
    session: list[tuple[str, str]], sections: list[list[tuple[str, str]]]
) -> SessionDescription:
    fields = {kind: value for kind, value in session if kind != "a"}
    username, session_id, version, _net, _family, origin_address = fields["o"].split()[:6]
    address = origin_address
    connections = [value for kind, value in session if kind == "c"]
    connections += [value for section in sections for kind, value in section if kind == "c"]
    if connections:
        address = connections[0].split()[2].split("/")[0]
    return SessionDescription(
        origin_address=origin_address,
        address=address,
        name=fields.get("s", "-"),
        session_id=int(session_id),
        version=int(version),
        username=username,
        media=tuple(map(_parse_media, sections)),
        attributes=tuple(value for kind, value in session if kind == "a"),
    )


def _parse_media(section: list[tuple[str, str]]) -> Media:
    kind, port, transport, payload_type = section[0][1].split()[:4]
    if kind != "audio" or not transport.startswith("RTP/"):
        raise ValueError(f"unexpected medium {kind} over {transport}")
    reader = _MediaReader(int(payload_type))
    title = ""
    for line_kind, value in section[1:]:
        if line_kind == "i":
            title = value
        elif line_kind == "a":
            reader.attribute(value)
    return reader.media(int(port.split("/")[0]), title)


class _MediaReader:
    """Collects the attributes of one ``m=`` section."""

    def __init__(self, payload_type: int) -> None:
        self.payload_type = payload_type
        self.encoding = {10: "L16", 11: "L16"}.get(payload_type, "")
        self.clock_rate = 44_100 if self.encoding else 0
        self.channels = 2 if payload_type == 10 else 1
        self.fmtp: dict[str, str] = {}
        self.ssrc: int | None = None
        self.cname: str | None = None
        self.packet_ms: float | None = None
        self.rtcp_port: int | None = None
        self.extensions: dict[int, str] = {}
        self.direction = "sendrecv"
        self.others: list[str] = []

    def attribute(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name in DIRECTIONS:
            self.direction = name
        elif name == "rtpmap":
            self._rtpmap(value)
        elif name == "fmtp":
            self._fmtp(value)
        elif name == "ptime":
            self.packet_ms = float(value)
        elif name == "rtcp":
            self.rtcp_port = int(value.split()[0])
        elif name == "extmap":
            identifier, uri = value.split()[:2]
            self.extensions[int(identifier.split("/")[0])] = uri
        elif name == "ssrc":
            ssrc, _, detail = value.partition(" ")
            self.ssrc = int(ssrc)
            if detail.startswith("cname:"):
                self.cname = detail.removeprefix("cname:")
        else:
            self.others.append(line)

    def _rtpmap(self, value: str) -> None:
        payload_type, mapping = value.split()[:2]
        if int(payload_type) != self.payload_type:
            return
        parts = mapping.split("/")
        self.encoding, self.clock_rate = parts[0], int(parts[1])
        self.channels = int(parts[2]) if len(parts) > 2 else 1

    def _fmtp(self, value: str) -> None:
        payload_type, _, parameters = value.partition(" ")
        if int(payload_type) != self.payload_type:
            return
        for parameter in parameters.split(";"):
            name, _, setting = parameter.strip().partition("=")
            if name:
                self.fmtp[name] = setting.strip()

    def media(self, port: int, title: str) -> Media:
        if not self.encoding:
            raise ValueError(f"payload type {self.payload_type} has no rtpmap")
        return Media(
            port=port,
            payload_type=self.payload_type,
            encoding=self.encoding,
            clock_rate=self.clock_rate,
            channels=self.channels,
            fmtp=self.fmtp,
            ssrc=self.ssrc,
            cname=self.cname,
            packet_ms=self.packet_ms,
            rtcp_port=self.rtcp_port,
            extensions=self.extensions,
            direction=self.direction,
            title=title,
            attributes=tuple(self.others),
        )
