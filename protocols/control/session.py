"""The door of the control protocol's cores: both sessions and what they are made with.

The machines themselves are :mod:`protocols.control.server_session` and
:mod:`protocols.control.client_session`; nothing is added here.
"""

from protocols.control.client_session import ClientSession
from protocols.control.limits import ClientLimits, ServerLimits
from protocols.control.outgoing import CloseFrame, Outgoing, Priority, priority_of
from protocols.control.server_session import ServerSession

__all__ = [
    "ClientLimits",
    "ClientSession",
    "CloseFrame",
    "Outgoing",
    "Priority",
    "ServerLimits",
    "ServerSession",
    "priority_of",
]
