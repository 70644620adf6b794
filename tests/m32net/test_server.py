"""What the rooms of one server tell each other: the parts of it that are in no room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.trial import unittest

from m32net import server as server_module
from m32net.config import ServerConfig
from m32net.fittings import CONNECTIONS_BESIDES
from m32net.interfaces import Arrival
from m32net.server import Server
from m32net.settings import ServerSettingsChanged, changed_settings
from m32net.streaming.door import ARRIVAL_S
from protocols.tcp.admission import Verdict


class Told(unittest.TestCase):
    """A server that is put together and not started."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        self.patch(Server, "_first_password", lambda self: None)
        config = ServerConfig(state_dir=directory, source="test", http="tcp:0", https=None)
        self.server: Any = Server(reactor, config)

    def test_more_listeners(self) -> None:
        """CON-2: more listeners need more connections, at once and not after the next start."""
        old = self.server.settings.settings
        new = changed_settings(old, {"max_listeners": 700})
        names = frozenset({"max_listeners"})
        self.server._settings_changed(ServerSettingsChanged(old, new, names, "admin"))
        limits = self.server.web.limits
        self.assertEqual(limits.max_connections, 700 + CONNECTIONS_BESIDES)
        self.assertEqual(self.server.web.guard.admission.limits, limits)

    def test_few_files(self) -> None:
        """CON-2: a limit of open files below what all connections need is said at the start."""
        said: list[str] = []
        log = SimpleNamespace(warn=lambda text, **more: said.append(text.format(**more)))
        self.patch(Server, "log", log)
        self.patch(server_module, "fail", lambda reason: None)
        self.patch(self.server.streaming.transmission, "open", lambda: None)
        self.patch(MultiService, "privilegedStartService", lambda self: None)
        for limit, lines in ((64, 1), (4096, 0)):
            said.clear()
            self.patch(server_module, "allow_many_files", lambda limit=limit: limit)
            self.server.privilegedStartService()
            self.assertEqual(len(said), lines)
        self.assertEqual(said, [])

    def test_announced_late(self) -> None:
        """CON-51: a host is expected for as long as its listeners are: a move may take an hour."""
        host = "192.0.2.7"
        self.server.migration.expect([Arrival("client_a", "t" * 43, "Anna", host)])
        admission, now = self.server.web.guard.admission, reactor.seconds()  # type: ignore[attr-defined]
        for seconds in (0.0, 3600.0, ARRIVAL_S - 1):
            for _ in range(50):
                self.assertIs(admission.arrive(host, now + seconds), Verdict.ADMIT)

    def test_audio_comes_between(self) -> None:
        """CON-2: between requests and between the turns of control connections."""
        hand_over = self.server.audio.hand_over
        self.assertEqual(self.server.web.guard.between, hand_over)
        self.assertEqual(self.server.control.between, hand_over)
