"""Where a server is, as people type it: ``http://host:port/``, ``host:port`` or ``ws://…``."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

DEFAULT_PORT: Final = 8080
"""The server's own default, for an address without scheme and port."""
_LONGEST: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
"""RFC 1123 section 2.1, with the underscore that some networks have."""
_SECURE: Final = {"http": False, "ws": False, "https": True, "wss": True}


class AddressError(ValueError):
    """This is no address of a server; says what one looks like."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server's HTTP address; the WebSocket shares its port."""

    host: str
    port: int
    secure: bool = False

    @classmethod
    def parse(cls, text: str) -> ServerAddress:
        """Read what was typed; path, query and a trailing slash do not matter.

        :raises AddressError: it is no address.
        """
        text = text.strip()
        bare = "://" not in text
        try:
            parts = urlsplit(f"//{text}" if bare else text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise AddressError(_explain(text, str(error))) from None
        scheme = "http" if bare else parts.scheme.lower()
        if scheme not in _SECURE:
            raise AddressError(_explain(text, f"{scheme}:// is not spoken here"))
        if not host or any(character.isspace() for character in host):
            raise AddressError(_explain(text, "there is no host in it"))
        host = _plain(host)
        if host is None:
            raise AddressError(_explain(text, "there is no host of that name"))
        if port == 0:
            raise AddressError(_explain(text, "port 0 is none"))
        secure = _SECURE[scheme]
        default = DEFAULT_PORT if bare else 443 if secure else 80
        return cls(host, port or default, secure)

    @classmethod
    def at(cls, host: str, port: int, *, secure: bool) -> ServerAddress:
        """A host and port as a server names them.

        :raises AddressError: there is no host of that name.
        """
        plain = _plain(host)
        if plain is None:
            raise AddressError(_explain(host, "there is no host of that name"))
        return cls(plain, port, secure)

    @property
    def _netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def http(self) -> str:
        """``http://host:port`` without a slash at the end."""
        return f"http{'s' if self.secure else ''}://{self._netloc}"

    @property
    def websocket(self) -> str:
        return f"ws{'s' if self.secure else ''}://{self._netloc}/ws"

    def __str__(self) -> str:
        return f"{self.http}/"


def _plain(host: str) -> str | None:
    """A host name in ASCII (RFC 3490 where it is not), or an IP address; None if it is neither."""
    with suppress(ValueError):
        return str(ip_address(host.partition("%")[0])) and host
    try:
        plain = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return None
    labels = plain.removesuffix(".").split(".")
    if len(plain) > _LONGEST or not all(map(_LABEL.fullmatch, labels)):
        return None
    if labels[-1].isdigit():  # RFC 3696 section 2: it would be an IPv4 address, and is none
        return None
    return plain


def _explain(text: str, why: str) -> str:
    return f"{text!r} is no server's address ({why}); it looks like http://192.168.1.10:8080/"
