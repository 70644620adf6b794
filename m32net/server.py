"""One server: the only place that knows all rooms, puts them together, starts and stops them.

Whatever is wrong at the start is one line and exit status 1.  What the options mean for each room
is in :mod:`m32net.fittings`.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NoReturn

from twisted.application.service import MultiService
from twisted.internet import defer
from twisted.logger import LogLevel
from twisted.web.client import Agent

from m32net import __version__
from m32net.audio.opus import opus_problem
from m32net.audio.service import AudioService, AudioStatus
from m32net.audio.sources import open_source
from m32net.audio.sources.demo import DEMO_CHANNEL_NAMES
from m32net.audio.watch import AudioWatch
from m32net.config import ConfigError, ServerConfig
from m32net.discovery.mdns import Advertisement, MdnsService, ZeroconfAnnouncer, local_addresses
from m32net.discovery.qr import qr_svg, qr_terminal
from m32net.fittings import (
    admission_limits,
    audio_offer,
    chosen_audio,
    chosen_settings,
    greeting,
    on_interface,
    session_limits,
    socket_options,
    transmission,
    where,
)
from m32net.interfaces import RefusedError
from m32net.log import RoomLog
from m32net.ops.delivery import Counters
from m32net.ops.process import (
    ProcessMeter,
    allow_many_files,
    spare_the_collector,
    too_few_files,
)
from m32net.ops.service import OpsService
from m32net.ops.status import ServerStatus
from m32net.settings import (
    AudioConfig,
    AudioConfigChanged,
    ChannelsChanged,
    ServerSettings,
    ServerSettingsChanged,
    SettingsChange,
    changed_settings,
)
from m32net.store.service import SettingsService, open_settings
from m32net.streaming.control import ListenerControlFactory
from m32net.streaming.door import ARRIVAL_S, Door
from m32net.streaming.meters import LevelFeed
from m32net.streaming.moving import MigrationService
from m32net.streaming.negotiation import AudioOffer
from m32net.streaming.profile import Profile
from m32net.streaming.registry import Limits, Registry
from m32net.streaming.service import StreamingService
from m32net.streaming.target import Introduction, quiet_pool
from m32net.succession import Succession
from m32net.trust.peers import peer_agent
from m32net.trust.service import TrustService, open_trust
from m32net.web.api import WebApi
from m32net.web.auth import Auth
from m32net.web.headers import hsts_fits
from m32net.web.service import WebError, WebService
from protocols.control.messages import ServerInfo

RECONNECT_AFTER_S: Final = 60.0
"""What listeners are told when the server stops (CON-50)."""
STOP_S: Final = 30
"""The server has ended after this time, whatever a client, a disk or a library does (CON-50)."""
ANSWER_S: Final = 10.0
"""How long requests that are under way may take, and their answers to be sent, until the server
stops without them."""


def fail(reason: str) -> NoReturn:
    """One line for the person at the terminal, and exit status 1."""
    # Twisted's log may own sys.stderr by now.
    print(f"m32net: {reason}", file=sys.__stderr__, flush=True)
    raise SystemExit(1)


class Server(MultiService):
    """All rooms of one server.

    :raises ConfigError, StoreError, SourceError, RefusedError, TrustError: on construction; one
        line each.
    """

    log = RoomLog(namespace="m32net")

    def __init__(self, reactor: Any, config: ServerConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._instance = secrets.token_hex(8)
        self.reactor = reactor
        self.config = config
        RoomLog.threshold = LogLevel.lookupByName(config.log_level)
        self.source = open_source(config.source, config.channels)
        self.succession = Succession(reactor, config.state_dir, take_over=config.take_over)
        self.settings = self._open_store()
        self.audio_config, self.limits = self._overridden()
        self.no_opus = opus_problem()
        if self.no_opus and self.audio_config.codec == "opus":
            raise ConfigError(f"{self.no_opus}; or send PCM only, with --codec L16")
        self.process = ProcessMeter(reactor)
        self.status = ServerStatus(
            name=config.name,
            version=__version__,
            node_id=self.settings.node_id,
            rtp_port=config.rtp_port,
            seconds=time.monotonic,
            process=self.process,
            started=time.monotonic(),
        )
        self.streaming = self._make_streaming()
        watch = AudioWatch(self._audio_status, self.settings.note_event, time.monotonic)
        self.meters = LevelFeed(self._set_metering, in_full=not config.compression)
        self.audio = AudioService(
            reactor,
            self.source,
            self.streaming.transmission.frames_ready,
            watch.event,
            config.encoder_threads,
            complexity=config.opus_complexity,
            on_levels=self.meters.levels,
        )
        self.auth = Auth(self.settings, reactor, local_token=self.succession.token)
        self.control = self._make_control()
        self.ops = OpsService(
            reactor,
            self.status,
            self.streaming,
            counters=self._counters,
            encoding=lambda: self.audio.status().state == "running",
            state_dir=config.state_dir,
        )
        self.mdns: MdnsService | None = None
        self.trust = self._make_trust()
        self.web = self._make_web()
        self.succession.attach(self.settings, self.web)
        self.succession.promoted = self._open_house
        rooms = (
            self.settings,
            self.process,
            self.audio,
            self.streaming,
            self.web,
            self.ops,
            self.migration,
            self.succession,
        )
        for service in rooms:
            service.setServiceParent(self)  # type: ignore[no-untyped-call]
        if self.trust is not None:
            self.trust.setServiceParent(self)  # type: ignore[no-untyped-call]
            self.status.rooms["trust"] = self.trust.health
            self.status.figures.append(self.trust.figures)
        self.settings.subscribe(self._settings_changed)
        self.status.rooms |= {
            "audio": watch.health,
            "streaming": self.streaming.health,
            "store": self.settings.health,
            "connections": self.web.health,
        }
        self.status.figures += [
            watch.figures,
            self.streaming.figures,
            self.control.figures,
            self.meters.figures,
            self.settings.figures,
            self.web.counters,
        ]
        self._first_password()

    # -- making ----------------------------------------------------------------------------

    def _open_store(self) -> SettingsService:
        config = self.config
        return open_settings(
            config.state_dir / "m32net.sqlite",
            reactor=self.reactor,
            channels=self.source.channels,
            default_names=DEMO_CHANNEL_NAMES if config.source == "demo" else (),
            shared=self.succession.waiting,
        )

    def _overridden(self) -> tuple[AudioConfig, ServerSettings]:
        """Stored settings with the start-up options in their places."""
        try:
            return (
                chosen_audio(self.config).applied_to(self.settings.audio_config),
                changed_settings(self.settings.settings, chosen_settings(self.config)),
            )
        except RefusedError as reason:
            raise ConfigError(f"the options do not fit together: {reason.message}") from None

    def _make_streaming(self) -> StreamingService:
        config, settings = self.config, self.settings
        registry = Registry(
            self._offer(self.audio_config),
            Limits(self.limits.max_listeners, self.limits.heartbeat_timeout_s, config.grace_s),
            new_id=lambda: f"client_{secrets.token_hex(6)}",
            new_token=lambda: secrets.token_urlsafe(32),
            door=Door(lambda: settings.settings.listener_pin),
        )
        return StreamingService(
            self.reactor,
            registry,
            transmission(config, self.limits.dscp, share_ports=self.succession.waiting),
            server=ServerInfo(config.name, __version__, "master"),
            set_demand=self._set_demand,
            channel_names=lambda: {one.id: one.name for one in settings.channels},
            note_quality=settings.note_quality,
            note_event=settings.note_event,
        )

    def _make_control(self) -> ListenerControlFactory:
        return ListenerControlFactory(
            self.streaming,
            reactor=self.reactor,
            meters=self.meters,
            compression=self.config.compression,
            limits=session_limits(self.config, self.limits.heartbeat_timeout_s),
            between=self.audio.hand_over,
        )

    def _make_trust(self) -> TrustService | None:
        """The certificates of ``--https``; an endpoint that starts with ``ssl:`` has its own."""
        config = self.config
        if config.https is None or config.https.startswith("ssl:"):
            return None
        return open_trust(
            self.reactor,
            config.state_dir / "tls",
            label=config.name,
            hosts=self._host_names,
            certificate=config.tls_certificate,
            key=config.tls_key,
            peer_ca=config.peer_ca,
        )

    def _host_names(self) -> list[str]:
        """What mDNS calls this server, or will; asked from a thread."""
        wanted = f"{Advertisement(self.config.name, 0, __version__).host_label()}.local"
        announced = self.mdns.announced if self.mdns is not None else None
        return [wanted, announced.host] if announced is not None else [wanted]

    def _make_web(self) -> WebService:
        config = self.config
        api = WebApi(
            status=self.status,
            listeners=self.streaming,
            settings=self.settings,
            auth=self.auth,
            metrics=self.ops.metrics.answer,
            qr_svg=qr_svg,
            trust=self.trust,
            compress=config.compression,
            hsts=hsts_fits(config.tls_certificate is not None, config.http),
        )
        endpoints = [on_interface(config.http, config.interface)]
        secure = [on_interface(config.https, config.interface)] if config.https else []
        if self.trust is None:
            endpoints += secure
        api.connections = web = WebService(
            self.reactor,
            api.root(self.control.web_resource()),
            endpoints,
            limits=admission_limits(config, self.limits.max_listeners),
            options=socket_options(config),
            tls_endpoints=secure if self.trust is not None else [],
            tls=self.trust.context_factory if self.trust is not None else None,
            mptcp=config.mptcp,
            between=self.audio.hand_over,
        )
        api.migration = self.migration = self._make_migration(web)
        return web

    def _make_migration(self, web: WebService) -> MigrationService:
        pool = quiet_pool(self.reactor)
        agent: Any = Agent(self.reactor, connectTimeout=5, pool=pool)  # type: ignore[no-untyped-call]
        peers = peer_agent(self.reactor, self.trust, pool=pool) if self.trust else None
        return MigrationService(
            self.reactor,
            self.streaming,
            introduce=self._introduce,
            agent=agent,
            agent_for_peers=peers,
            succession=self.succession,
            note_event=self.settings.note_event,
            expect_host=partial(web.expect, for_s=ARRIVAL_S),
        )

    def _introduce(self) -> Introduction:
        """What another server is told of this one."""
        registry, secure = self.streaming.registry, self.web.tls_ports
        return Introduction(
            name=self.config.name,
            version=__version__,
            node_id=self.settings.node_id,
            instance=self._instance,
            channels=registry.offer.channels,
            free_places=max(0, registry.limits.max_listeners - len(registry)),
            https_port=secure[0].getHost().port if secure else None,  # type: ignore[attr-defined]
        )

    def _offer(self, config: AudioConfig) -> AudioOffer:
        return audio_offer(config, self.settings.channels, opus=self.no_opus is None)

    def _first_password(self) -> None:
        password = None if self.succession.waiting else self.auth.first_run()
        if password is not None:
            print(
                f"\nThe engineer's password (user admin), shown only this once: {password}\n",
                file=sys.__stdout__,
                flush=True,
            )

    # -- start and stop --------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Open all ports; what is taken is told in one line."""
        config = self.config
        connections = admission_limits(config, self.limits.max_listeners).max_connections
        if few := too_few_files(allow_many_files(), connections):
            self.log.warn("{few}", few=few)
        try:
            self.streaming.transmission.open()
        except OSError as reason:
            fail(
                f"cannot use UDP ports {config.rtp_port} and {config.rtp_port + 1}"
                f"{where(config)}: {reason.strerror}; choose others with --rtp-port"
            )
        try:
            super().privilegedStartService()  # type: ignore[no-untyped-call]
        except WebError as reason:
            fail(str(reason))

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.reactor.callWhenRunning(spare_the_collector)
        if self.succession.waiting:
            self.reactor.callWhenRunning(
                print,
                f"Waiting for the place of the server that uses {self.config.state_dir}; "
                "`m32net migrate --to` its address moves its listeners here",
                file=sys.__stdout__,
                flush=True,
            )
        else:
            self._open_house()

    def _open_house(self) -> None:
        """This is the server of its state directory now: store options, announce, greet."""
        who = "start-up options"
        if self.audio_config != self.settings.audio_config:
            self._persist(self.settings.set_audio_config(chosen_audio(self.config), who=who))
        if self.limits != self.settings.settings:
            self._persist(self.settings.set_settings(chosen_settings(self.config), who=who))
        port = self.http_port()
        hosts = [self.config.interface] if self.config.interface else list(local_addresses())
        urls = [f"http://{host}:{port}/" for host in hosts] or [f"http://127.0.0.1:{port}/"]
        self.status.page_url = urls[0]
        secure = self._secure_urls(hosts or ["127.0.0.1"])
        if self.config.mdns:
            advertisement = Advertisement(
                self.config.name, port, __version__, node_id=self.settings.node_id
            )
            announcer = ZeroconfAnnouncer(advertisement, self.config.interface)
            self.mdns = MdnsService(announcer, self.reactor)
            self.mdns.setServiceParent(self)  # type: ignore[no-untyped-call]  # starts it
            self.status.rooms["discovery"] = self.mdns.health
        self.reactor.callWhenRunning(self._greet, urls, secure)

    def _persist(self, writing: defer.Deferred[Any]) -> None:
        writing.addErrback(
            lambda failure: self.log.error(
                "Start-up options were not stored: {reason}", reason=failure.getErrorMessage()
            )
        )

    def http_port(self) -> int:
        """The TCP port of the pages; ``--http tcp:0`` lets the system choose it."""
        return int(self.web.ports[0].getHost().port)  # type: ignore[attr-defined]

    def _secure_urls(self, hosts: list[str]) -> list[str]:
        """The page's addresses with TLS; none without."""
        if self.trust is None:
            return []
        port = self.web.tls_ports[0].getHost().port  # type: ignore[attr-defined]
        urls = [f"https://{host}:{port}/" for host in hosts]
        self.trust.secure_url = urls[0]
        return urls

    def _greet(self, urls: list[str], secure: list[str]) -> None:
        self.log.info(
            "m32net {version} with {source}: {urls}",
            version=__version__,
            source=self.source.name,
            urls=" ".join(urls + secure),
        )
        certified = self.trust is not None and self.trust.ca_pem() is not None
        lines = greeting(self.config, self.http_port(), urls, secure, certified=certified)
        print("\n".join([qr_terminal(urls[0]), *lines]), file=sys.__stdout__, flush=True)

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        """Refuse new connections, tell everybody, answer what was asked, stop sending, close."""
        self.ops.stopping()
        yield self.web.stop_listening()
        told = self.streaming.tell_all(
            "server_shutdown", "maintenance", {"reconnect_after": RECONNECT_AFTER_S}
        )
        self.log.info("Stopping; {told} listeners were told", told=told)
        yield self.control.close_all(reason="maintenance")
        begin = self.reactor.seconds()
        yield self.web.site.all_answered(ANSWER_S)
        self.web.closing_s = max(1.0, ANSWER_S - (self.reactor.seconds() - begin))
        yield super().stopService()  # type: ignore[no-untyped-call]

    # -- what rooms tell each other --------------------------------------------------------

    def _settings_changed(self, change: SettingsChange) -> None:
        match change:
            case AudioConfigChanged(new=new, reason=reason):
                fields = {"new_sample_rate": new.sample_rate}
                self._reoffer(reason or "the audio format was changed", fields)
            case ChannelsChanged(mapping_changed=True):
                self._reoffer("the channels that are sent were changed", {})
            case ChannelsChanged():
                self.streaming.channels_renamed()
            case ServerSettingsChanged(new=new):
                self.streaming.change_limits(
                    max_listeners=new.max_listeners, heartbeat_timeout_s=new.heartbeat_timeout_s
                )
                self.web.change_limits(admission_limits(self.config, new.max_listeners))
                self.control.change_heartbeat_timeout(new.heartbeat_timeout_s)
                self.streaming.transmission.set_dscp(new.dscp)

    def _set_demand(self, demand: Mapping[Profile, frozenset[int]]) -> None:
        self.audio.set_demand(demand)
        wanted = any(demand.values())
        self.ops.want(wanted)
        if not wanted and self.running:
            self.reactor.callLater(0, spare_the_collector)

    def _set_metering(self, wanted: bool) -> None:
        self.audio.set_metering(wanted)

    def _counters(self) -> Counters:
        totals = self.streaming.transmission.totals
        return Counters(
            turns=self.audio.engine.turns,
            frames=totals["frames"],
            packets=totals["packets"],
            dropped=totals["dropped"],
            unsendable=totals["unsendable"],
        )

    def _audio_status(self) -> AudioStatus:
        return self.audio.status()

    def _reoffer(self, reason: str, fields: Mapping[str, Any]) -> None:
        self.streaming.change_offer(self._offer(self.settings.audio_config), reason, fields)
