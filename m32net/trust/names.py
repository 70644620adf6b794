"""What this server is called: the host names and addresses its certificate is made for.

Also which of these a local CA may certify at all.  Pure but for :func:`machine_names`, which asks
the system; nothing here looks a name up in the DNS.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import ifaddr

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_NAMES: Final = 64
"""Names, and as many addresses, in a certificate: it travels in every handshake."""

LOCAL_SUFFIXES: Final = ("localhost", "local", "home.arpa", "internal")
"""Names that mean nothing outside a local network: RFC 6761, 6762, 8375, and ICANN's reserved
``internal``."""

LOCAL_NETWORKS: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Addresses that are not routed on the Internet: RFC 1122, 1918, 3927, 6598, 4291, 4193."""

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Names:
    """Host names (lower case) and addresses, each sorted and once."""

    hosts: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()

    @classmethod
    def of(cls, hosts: Iterable[str] = (), addresses: Iterable[Address | str] = ()) -> Self:
        """What cannot be a host name is left out; at most :data:`MAX_NAMES` of each kind."""
        names = {host.lower().rstrip(".") for host in hosts}
        ips = {ipaddress.ip_address(address) for address in addresses}
        return cls(
            tuple(sorted(name for name in names if is_host_name(name)))[:MAX_NAMES],
            tuple(sorted(ips, key=_local_first)[:MAX_NAMES]),
        )

    def texts(self) -> tuple[str, ...]:
        return (*self.hosts, *map(str, self.addresses))


def _local_first(address: Address) -> tuple[bool, int, int]:
    local = any(address in network for network in LOCAL_NETWORKS)
    return not local, address.version, int(address)


def is_host_name(text: str) -> bool:
    """Whether a certificate can be made for it (RFC 1123; underscores as machines have them)."""
    return 0 < len(text) <= 253 and all(_LABEL.fullmatch(label) for label in text.split("."))


def machine_names(more: Iterable[str] = ()) -> Names:
    """The names and addresses of this machine now, ``localhost``, and ``more`` host names.

    The host name counts as ``NAME`` and as ``NAME.local``, which is how mDNS shows it.
    """
    own = socket.gethostname()
    addresses = {
        ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    }
    addresses |= {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
    return Names.of(("localhost", own, f"{own.split('.')[0]}.local", *more), addresses)


@dataclass(frozen=True, slots=True)
class Realm:
    """What a local CA may certify, as its name constraints say (RFC 5280 section 4.2.1.10).

    :ivar hosts: a host name is in it if it equals one of these or ends with ``.`` and one.
    """

    hosts: tuple[str, ...]
    networks: tuple[Network, ...]

    def split(self, names: Names) -> tuple[Names, Names]:
        """``names`` in it, and those outside."""
        hosts = [host for host in names.hosts if self._has_host(host)]
        ips = [one for one in names.addresses if any(one in net for net in self.networks)]
        return Names.of(hosts, ips), Names.of(
            set(names.hosts) - set(hosts), set(names.addresses) - set(ips)
        )

    def _has_host(self, host: str) -> bool:
        return any(host == one or host.endswith(f".{one}") for one in self.hosts)


def realm_for(names: Names) -> Realm:
    """Local names and networks, and what this machine is called beyond these.

    A phone that trusts the CA must not thereby trust it for any site of the Internet, should its
    key ever be stolen.  A public IPv6 address stands for its /64, since machines change the rest.
    """
    hosts = [
        host
        for host in names.hosts
        if not Realm(LOCAL_SUFFIXES, ()).split(Names.of([host]))[0].hosts
        and not could_be_top_level(host)
    ]
    networks: list[Network] = []
    for address in names.addresses:
        if not any(address in network for network in LOCAL_NETWORKS):
            bits = 32 if address.version == 4 else 64
            networks.append(ipaddress.ip_network((address, bits), strict=False))
    return Realm(
        (*LOCAL_SUFFIXES, *hosts),
        (*LOCAL_NETWORKS, *sorted(set(networks), key=lambda net: (net.version, net))),
    )


def could_be_top_level(host: str) -> bool:
    """Whether this may be a top-level domain, such as ``live``, ``studio`` or ``xn--p1ai``.

    A constraint to the host name ``studio`` would let the CA certify all of ``*.studio`` on the
    Internet.  No top-level domain has a digit or a hyphen but the ``xn--`` ones.
    """
    return host.isalpha() or (host.startswith("xn--") and "." not in host)
