"""The life of a listener as one table of states: connect, be welcome, ask, stream, come back.

While it moves to another server (CON-51) it goes on with the old one; what it does with the new one
meanwhile is the table of :mod:`m32net.listener.move`.

The table is total: every happening in every state has its next state and its action.
:mod:`m32net.listener.session` carries the actions out; docs/states/listener.md is drawn from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Life(Enum):
    """Where a listener stands."""

    IDLE = "idle"
    CONNECTING = "connecting"
    GREETING = "greeting"
    ASKING = "asking"
    REQUESTING = "requesting"
    STREAMING = "streaming"
    MOVING = "moving"
    WAITING = "waiting"
    CLOSED = "closed"


class Happening(Enum):
    """What can happen to it."""

    START = "start"
    OPENED = "connection open"
    FAILED = "connection failed"
    WELCOMED = "welcome"
    KNOWN = "audio-meta fetched"
    STREAM = "stream"
    CHANGED = "config_changed"
    SILENT = "no packets"
    REFUSED = "error"
    LATE = "no answer"
    TOLD_TO_LEAVE = "reconnect"
    TOLD_TO_MOVE = "serverMigration amid a stream"
    SENT_ON = "serverMigration before any"
    TOLD_TO_STAY = "migrationCancelled"
    MOVED = "the other server's stream has taken over"
    LOST = "connection lost"
    DUE = "waited long enough"
    STOP = "stop"


class Action(Enum):
    """What it does about it."""

    CONNECT = "open connection"
    LEARN = "fetch audio-meta and thresholds"
    REQUEST = "send client_config"
    LISTEN = "listen"
    BACK_OFF = "wait"
    LEAVE = "close, wait"
    REDIRECT = "close, connect to the other server"
    MOVE = "begin a move"
    HURRY = "move at once"
    STAY = "call the move off"
    ADOPT = "say bye to the old server"
    REPORT = "report"
    END = "close"
    IGNORE = "ignore"


_L, _H, _A = Life, Happening, Action
_CONNECTED: Final = (_L.GREETING, _L.ASKING, _L.REQUESTING, _L.STREAMING)
_OLD_ENDS: Final = (_H.SILENT, _H.TOLD_TO_LEAVE, _H.LOST)
"""While moving: what comes from the old server may end any moment, or has."""
_STATED: Final[Mapping[tuple[Life, Happening], tuple[Life, Action]]] = {
    (_L.IDLE, _H.START): (_L.CONNECTING, _A.CONNECT),
    (_L.CONNECTING, _H.OPENED): (_L.GREETING, _A.REPORT),
    (_L.CONNECTING, _H.FAILED): (_L.WAITING, _A.BACK_OFF),
    (_L.GREETING, _H.WELCOMED): (_L.ASKING, _A.LEARN),
    (_L.GREETING, _H.REFUSED): (_L.GREETING, _A.REPORT),
    (_L.ASKING, _H.KNOWN): (_L.REQUESTING, _A.REQUEST),
    (_L.ASKING, _H.STREAM): (_L.ASKING, _A.LISTEN),
    (_L.ASKING, _H.CHANGED): (_L.ASKING, _A.LEARN),
    (_L.ASKING, _H.REFUSED): (_L.ASKING, _A.REPORT),
    (_L.REQUESTING, _H.STREAM): (_L.STREAMING, _A.LISTEN),
    (_L.REQUESTING, _H.CHANGED): (_L.ASKING, _A.LEARN),
    (_L.REQUESTING, _H.REFUSED): (_L.WAITING, _A.LEAVE),
    (_L.REQUESTING, _H.LATE): (_L.WAITING, _A.LEAVE),
    (_L.STREAMING, _H.STREAM): (_L.STREAMING, _A.LISTEN),
    (_L.STREAMING, _H.CHANGED): (_L.ASKING, _A.LEARN),
    (_L.STREAMING, _H.SILENT): (_L.ASKING, _A.LEARN),
    (_L.STREAMING, _H.REFUSED): (_L.STREAMING, _A.REPORT),
    **{(state, _H.SENT_ON): (_L.CONNECTING, _A.REDIRECT) for state in _CONNECTED},
    **{(state, _H.TOLD_TO_MOVE): (_L.MOVING, _A.MOVE) for state in (*_CONNECTED, _L.MOVING)},
    (_L.MOVING, _H.KNOWN): (_L.MOVING, _A.REQUEST),
    (_L.MOVING, _H.STREAM): (_L.MOVING, _A.LISTEN),
    (_L.MOVING, _H.CHANGED): (_L.MOVING, _A.LEARN),
    (_L.MOVING, _H.REFUSED): (_L.MOVING, _A.REPORT),
    **{(_L.MOVING, what): (_L.MOVING, _A.HURRY) for what in _OLD_ENDS},
    (_L.MOVING, _H.FAILED): (_L.WAITING, _A.BACK_OFF),
    (_L.MOVING, _H.MOVED): (_L.STREAMING, _A.ADOPT),
    (_L.MOVING, _H.TOLD_TO_STAY): (_L.STREAMING, _A.STAY),
    **{(state, _H.TOLD_TO_LEAVE): (_L.WAITING, _A.LEAVE) for state in _CONNECTED},
    **{(state, _H.LOST): (_L.WAITING, _A.BACK_OFF) for state in _CONNECTED},
    (_L.WAITING, _H.DUE): (_L.CONNECTING, _A.CONNECT),
    **{(state, _H.STOP): (_L.CLOSED, _A.END) for state in Life if state is not _L.CLOSED},
}
TABLE: Final[Mapping[tuple[Life, Happening], tuple[Life, Action]]] = {
    (state, what): _STATED.get((state, what), (state, _A.IGNORE))
    for state in Life
    for what in Happening
}
