"""What the rooms of one server tell each other: the parts of it that are in no room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial import unittest

from m32net.config import ServerConfig
from m32net.fittings import CONNECTIONS_BESIDES
from m32net.server import Server
from m32net.settings import ServerSettingsChanged, changed_settings


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
