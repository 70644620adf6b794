"""What counts as one address where something is limited per address, in the only place for it.

Pure functions on text, as transports give it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_TEXT: Final = 64
LOCAL: Final = ("fe80::/10", "fc00::/7")
"""IPv6 addresses of the link and of the site: everybody in the room shares one /64 of them."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """:raises ValueError: a text is no address or network."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def within(address: Address, among: Iterable[Network]) -> bool:
    """Whether an address belongs to one of these networks."""
    return any(address in network for network in among)


LOCAL_NETWORKS: Final = networks(LOCAL)


def plain(host: str) -> str:
    """IPv4 in IPv6 notation (``::ffff:192.0.2.1``) as IPv4; everything else as it is."""
    if host[:7].lower() != "::ffff:":
        return host
    try:
        mapped = ipaddress.IPv6Address(host.partition("%")[0]).ipv4_mapped
    except ValueError:
        return host
    return host if mapped is None else str(mapped)


def address_key(host: str, single: Iterable[Network] = LOCAL_NETWORKS) -> str:
    """What counts as one for ``host``: an IPv4 address, or the /64 of an IPv6 address.

    A /64 is what one customer, and so one phone, is given (RFC 6177); it has as many addresses as
    it likes.  IPv4 in IPv6 is IPv4, a scope (``%eth0``) does not count, and what is no address at
    all counts as itself.

    :param single: IPv6 networks in which every address counts by itself.
    """
    host = host.partition("%")[0][:MAX_TEXT]
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if within(address, single):
        return str(address)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
