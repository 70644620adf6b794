"""The door of the control protocol's shells: both ends on a WebSocket.

The shells themselves are :mod:`protocols.control.server_protocol` and
:mod:`protocols.control.client_protocol`; nothing is added here.
"""

from protocols.control.base_protocol import CLOSE_TIMEOUT_S, OPEN_TIMEOUT_S, wall_clock_ms
from protocols.control.client_protocol import (
    ClientOwner,
    ControlClientFactory,
    ControlClientProtocol,
    ControlConnectError,
    connect,
)
from protocols.control.server_protocol import (
    ControlServerFactory,
    ControlServerProtocol,
    ServerOwner,
)

__all__ = [
    "CLOSE_TIMEOUT_S",
    "OPEN_TIMEOUT_S",
    "ClientOwner",
    "ControlClientFactory",
    "ControlClientProtocol",
    "ControlConnectError",
    "ControlServerFactory",
    "ControlServerProtocol",
    "ServerOwner",
    "connect",
    "wall_clock_ms",
]
