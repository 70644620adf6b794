"""Control connections on their way into the streaming room.

A translation only: what a WebSocket's session tells becomes a call on the service, whose answers
go back through the connection itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from m32net.streaming.meters import LevelFeed
from m32net.streaming.service import StreamingService
from protocols.control import events
from protocols.control.connection import ControlConnection
from protocols.control.protocol import ControlServerFactory

ABUSES: Final = (1002, 1003, 1007, 1008, 1009)
"""Close codes (RFC 6455 section 7.4.1) of sessions that are ended because of what was sent."""


class ListenerControlFactory(ControlServerFactory):
    """Makes control connections whose listeners the streaming service looks after.

    :param streaming: gets every event.
    :param meters: shows levels to those who ask; None: nobody is shown any.
    :ivar abuses: sessions ended because of what was sent, by close code, since the start.
    """

    def __init__(
        self,
        streaming: StreamingService,
        *,
        reactor: Any,
        meters: LevelFeed | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("log_to", streaming.log)
        super().__init__(self.session_tells, reactor=reactor, **options)
        self.streaming = streaming
        self.meters = meters
        self.abuses: Counter[int] = Counter(dict.fromkeys(ABUSES, 0))

    def change_heartbeat_timeout(self, seconds: float) -> None:
        """For connections from now on; the registry watches all of them anyway."""
        self.limits = replace(self.limits, heartbeat_timeout_s=seconds)

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``: messages and bytes of all sessions since the start."""
        traffic = self.traffic()
        return {
            "control_connections": len(self.connections),
            "control_messages_received_total": traffic.messages_received,
            "control_messages_sent_total": traffic.messages_sent,
            "control_bytes_received_total": traffic.bytes_received,
            "control_bytes_sent_total": traffic.bytes_sent,
            **{
                f'control_sessions_abusive_total{{code="{code}"}}': count
                for code, count in self.abuses.items()
            },
        }

    def opened(self, connection: ControlConnection) -> None:
        super().opened(connection)
        self.streaming.connected(connection, connection.host)

    def session_tells(
        self, connection: ControlConnection, event: events.ServerSessionEvent
    ) -> None:
        streaming = self.streaming
        if self.meters is not None:
            self._show_levels(self.meters, connection, event)
        if isinstance(event, events.SessionClosed) and event.cause == "abuse":
            self.abuses[event.code] += 1
        match event:
            case events.Joined(hello=hello):
                streaming.hello(connection, hello)
            case events.Configured(config=config):
                streaming.configure(connection, config)
            case events.Alive():
                streaming.heard(connection)
            case events.SessionClosed(cause="bye", reason=reason):
                streaming.bye(connection, reason)
            case events.SessionClosed(cause="silent" | "abuse", reason=reason):
                streaming.expelled(connection, reason)
            case events.SessionClosed():
                streaming.lost(connection)
            case events.Refused():
                streaming.malformed += 1

    def _show_levels(
        self,
        meters: LevelFeed,
        connection: ControlConnection,
        event: events.ServerSessionEvent,
    ) -> None:
        match event:
            case events.MetersWanted(interval_ms=interval_ms):
                one = self.streaming.registry.of(connection)
                if one is not None and one.state != "arrived":  # let in, that is
                    meters.subscribe(connection, interval_ms)
            case events.SessionClosed():
                meters.forget(connection)
