"""mDNS (RFC 6762, 6763): the server announced as ``_m32net._tcp``, and servers found (STR-13).

:class:`ZeroconfAnnouncer` and :func:`discover` block and belong in a thread;
:class:`MdnsService` runs the former from the reactor, announces anew when addresses change, and
withdraws at the end.  A machine without a network is a reason in ``/health``, not an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import ifaddr
from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from zeroconf import (
    Error,
    InterfaceChoice,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceListener,
    Zeroconf,
)

from m32net.interfaces import Health
from m32net.log import RoomLog

SERVICE_TYPE: Final = "_m32net._tcp.local."
RECHECK_S: Final = 15.0
"""How often addresses are looked at, and a failed announcement is tried again."""
HOST_PROBE_MS: Final = 750
"""RFC 6762 section 8.1: a name not defended within three probes of 250 ms is free."""
MAX_HOSTS: Final = 20


class DiscoveryError(Exception):
    """mDNS does not work here; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What is announced.

    :ivar name: instance and host name wanted; a taken one gets ``-2``, ``-3``….
    :ivar port: of the web server.
    """

    name: str
    port: int
    version: str
    role: str = "master"
    path: str = "/ws"
    node_id: str = ""

    def host_label(self) -> str:
        """The name as a host name's first label: letters, digits and hyphens (RFC 1123)."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:60] or "m32-server"


@dataclass(frozen=True, slots=True)
class Announced:
    """What was announced in the end, after conflicts.

    :ivar instance: such as ``m32-server-2``.
    :ivar host: such as ``m32-server.local``.
    """

    instance: str
    host: str
    addresses: tuple[str, ...]


class IAnnouncer(Protocol):
    """Announces and withdraws; all of it blocks."""

    def addresses(self) -> tuple[str, ...]:
        """The IPv4 addresses to announce now."""
        ...

    def announce(self, addresses: tuple[str, ...]) -> Announced:
        """:raises DiscoveryError: it can't be announced."""
        ...

    def withdraw(self) -> None:
        """Say goodbye (TTL 0); does nothing if nothing is announced."""
        ...


def local_addresses() -> tuple[str, ...]:
    """The IPv4 addresses of this machine but loopback, sorted."""
    found = {
        str(address.ip)
        for adapter in ifaddr.get_adapters()
        for address in adapter.ips
        if address.is_IPv4
    }
    return tuple(sorted(ip for ip in found if not ip.startswith("127.")))


class ZeroconfAnnouncer:
    """Announces by python-zeroconf, whose event loop is a thread of its own.

    :param interface: the only address to use; None for all of the machine.
    """

    def __init__(self, advertisement: Advertisement, interface: str | None = None) -> None:
        self._advertisement = advertisement
        self._interface = interface
        self._zeroconf: Zeroconf | None = None
        self._info: ServiceInfo | None = None

    def addresses(self) -> tuple[str, ...]:
        return (self._interface,) if self._interface else local_addresses()

    def announce(self, addresses: tuple[str, ...]) -> Announced:
        if not addresses:
            raise DiscoveryError("this machine has no network address")
        zeroconf = _open(self._interface)
        try:
            info = self._info_for(addresses, _free_host(zeroconf, self._advertisement, addresses))
            zeroconf.register_service(info, allow_name_change=True)
        except Exception as error:
            zeroconf.close()
            raise DiscoveryError(_reason(error)) from error
        self._zeroconf, self._info = zeroconf, info
        return Announced(
            info.name.removesuffix(f".{SERVICE_TYPE}"), (info.server or "").rstrip("."), addresses
        )

    def _info_for(self, addresses: tuple[str, ...], host: str) -> ServiceInfo:
        what = self._advertisement
        return ServiceInfo(
            SERVICE_TYPE,
            f"{what.name}.{SERVICE_TYPE}",
            port=what.port,
            properties={
                "path": what.path,
                "version": what.version,
                "role": what.role,
                **({"id": what.node_id} if what.node_id else {}),
            },
            server=host,
            parsed_addresses=list(addresses),
        )

    def withdraw(self) -> None:
        zeroconf, info, self._zeroconf, self._info = self._zeroconf, self._info, None, None
        if zeroconf is None:
            return
        try:
            if info is not None:
                zeroconf.unregister_service(info)
        finally:
            zeroconf.close()


def _open(interface: str | None) -> Zeroconf:
    """:raises DiscoveryError: no interface takes multicast."""
    try:
        zeroconf = Zeroconf(
            interfaces=[interface] if interface else InterfaceChoice.All,
            ip_version=IPVersion.V4Only,
        )
    except (OSError, Error, RuntimeError) as error:
        raise DiscoveryError(_reason(error)) from error
    if not zeroconf.engine.senders:
        zeroconf.close()
        raise DiscoveryError(f"no multicast on {interface or 'any interface'}")
    return zeroconf


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _free_host(zeroconf: Zeroconf, what: Advertisement, own: Sequence[str]) -> str:
    """A host name nobody else answers to; python-zeroconf itself only looks at instance names."""
    label = what.host_label()
    for number in range(1, MAX_HOSTS + 1):
        host = f"{label}.local." if number == 1 else f"{label}-{number}.local."
        answer = ServiceInfo(host, host, server=host)
        try:
            answer.request(zeroconf, HOST_PROBE_MS)
        except Error:
            return host
        if set(answer.parsed_addresses(IPVersion.V4Only)) <= set(own):
            return host
    raise DiscoveryError(f"{label}.local and {MAX_HOSTS - 1} names like it are taken")


class MdnsService(Service):
    """Keeps the server announced while it runs.

    :param clock: for looking at the addresses again.
    :param in_thread: runs a blocking callable elsewhere and gives a Deferred of its result.
    """

    _log = RoomLog()

    def __init__(
        self,
        announcer: IAnnouncer,
        clock: IReactorTime,
        in_thread: Callable[..., Deferred[Any]] = deferToThread,
    ) -> None:
        self._announcer = announcer
        self._in_thread = in_thread
        self._announced: Announced | None = None
        self._failure: str | None = None
        self._checking = LoopingCall(self._check)
        self._checking.clock = clock
        self._under_way: Deferred[None] = succeed(None)

    @property
    def announced(self) -> Announced | None:
        """What is announced now."""
        return self._announced

    def health(self) -> Health:
        if self._failure is not None:
            reason = f"not announced by mDNS: {self._failure}"
            return Health("degraded", (reason,), {"announced": False})
        if self._announced is None:
            return Health("healthy", (), {"announced": False})
        return Health(
            "healthy",
            (),
            {
                "announced": True,
                "instance": self._announced.instance,
                "host": self._announced.host,
                "addresses": list(self._announced.addresses),
            },
        )

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._checking.start(RECHECK_S)

    def _check(self) -> Deferred[None]:
        """Announce if that is due; the Deferred never fails."""
        self._under_way = self._in_thread(self._announce).addCallbacks(self._done, self._failed)
        waiting: Deferred[None] = Deferred()
        self._under_way.addBoth(lambda _: waiting.callback(None))
        return waiting

    def _announce(self) -> Announced:
        """In the thread: leave what is there if it is still right."""
        addresses = self._announcer.addresses()
        current = self._announced
        if current is not None and current.addresses == addresses:
            return current
        self._announcer.withdraw()
        return self._announcer.announce(addresses)

    def _done(self, announced: Announced) -> None:
        if announced != self._announced or self._failure is not None:
            self._log.info(
                "mDNS: announced as {instance} at {host} ({addresses})",
                instance=announced.instance,
                host=announced.host,
                addresses=", ".join(announced.addresses),
            )
        self._announced, self._failure = announced, None

    def _failed(self, failure: Failure) -> None:
        reason = failure.getErrorMessage()
        if reason != self._failure:
            self._log.warn("mDNS: not announced: {reason}", reason=reason)
        if failure.check(DiscoveryError, OSError) is None:  # type: ignore[no-untyped-call]
            self._log.failure("mDNS: this was not expected", failure)
        self._announced, self._failure = None, reason

    @inlineCallbacks
    def stopService(self) -> Any:
        """Withdraw, so that nobody looks for a server that is gone; fires when that is done."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._checking.running:
            self._checking.stop()
        yield self._under_way
        self._announced = None
        try:
            yield self._in_thread(self._announcer.withdraw)
        except Exception as error:
            self._log.warn("mDNS: not withdrawn: {reason}", reason=_reason(error))


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A server on this network.

    :ivar url: of its page, by address (phones and guests resolve ``.local`` less reliably).
    """

    name: str
    host: str
    addresses: tuple[str, ...]
    port: int
    path: str
    version: str
    role: str

    @property
    def url(self) -> str:
        return f"http://{self.addresses[0] if self.addresses else self.host}:{self.port}/"


class _Names(ServiceListener):
    """Notes the instances that are there."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.names[name] = None

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.names[name] = None

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.names.pop(name, None)


def discover(timeout_s: float = 2.0, interface: str | None = None) -> list[FoundServer]:
    """Look for servers; blocks for ``timeout_s``.

    :param interface: the only address to look from; None for all of the machine.
    :returns: the servers found, by name.
    :raises DiscoveryError: there is no network to look at.
    """
    zeroconf = _open(interface)
    try:
        names = _Names()
        browser = ServiceBrowser(zeroconf, SERVICE_TYPE, listener=names)
        time.sleep(timeout_s)
        browser.cancel()
        found = []
        for name in sorted(names.names):
            info = ServiceInfo(SERVICE_TYPE, name)
            if info.request(zeroconf, 500):
                found.append(_found(info))
        return found
    finally:
        zeroconf.close()


def _found(info: ServiceInfo) -> FoundServer:
    text = {key: value or "" for key, value in info.decoded_properties.items()}
    return FoundServer(
        name=info.name.removesuffix(f".{SERVICE_TYPE}"),
        host=(info.server or "").rstrip("."),
        addresses=tuple(info.parsed_addresses(IPVersion.V4Only)),
        port=info.port or 0,
        path=text.get("path", "/ws"),
        version=text.get("version", ""),
        role=text.get("role", ""),
    )
