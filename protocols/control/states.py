"""The states of both ends of a control session, as two tables, and their diagrams.

Each table is total: every input in every state has its next state and its action.  The actions
are carried out by :mod:`protocols.control.session`; :func:`mermaid` draws what the documentation
shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar


class ServerState(Enum):
    """How far a listener has come."""

    NEW = "new"
    JOINED = "joined"
    CONFIGURED = "configured"
    CLOSED = "closed"


class ServerInput(Enum):
    """What can happen to a server's session."""

    HELLO = "hello"
    CLIENT_CONFIG = "client_config"
    HEARTBEAT = "heartbeat"
    NTP_REQUEST = "ntp_request"
    METERS = "meters"
    BYE = "bye"
    MALFORMED = "malformed message"
    ABUSE = "too much of it"
    SILENCE = "silence"
    CLOSE = "owner closes"
    LOST = "connection lost"


class ServerAction(Enum):
    """What a server's session does about it."""

    JOIN = "join"
    JOIN_IMPLICITLY = "join implicitly, configure"
    CONFIGURE = "configure"
    NOTE_ALIVE = "note alive"
    ANSWER_TIME = "answer the time"
    WANT_METERS = "report meters wanted"
    REFUSE = "answer an error"
    REFUSE_PLACE = "answer unexpected"
    END = "end"
    IGNORE = "ignore"


class ClientState(Enum):
    """How far the listener's own session has come."""

    IDLE = "idle"
    GREETING = "greeting"
    WELCOMED = "welcomed"
    STREAMING = "streaming"
    CLOSED = "closed"


class ClientInput(Enum):
    """What can happen to a listener's session."""

    START = "start"
    CONFIGURE = "owner configures"
    WELCOME = "welcome"
    STREAM = "stream"
    EVENT = "event"
    METERS = "meters"
    ERROR = "error"
    NTP_RESPONSE = "ntp_response"
    MALFORMED = "malformed message"
    ABUSE = "too much of it"
    SILENCE = "silence"
    CLOSE = "owner closes"
    LOST = "connection lost"


class ClientAction(Enum):
    """What a listener's session does about it."""

    GREET = "send hello"
    KEEP_CONFIG = "keep for later"
    SEND_CONFIG = "send client_config"
    ENTER = "report, send what was kept"
    REPORT_STREAM = "report stream"
    REPORT_EVENT = "report event"
    REPORT_METERS = "report meters"
    REPORT_ERROR = "report error"
    TAKE_TIME = "take the sample"
    LEAVE = "send bye, end"
    END = "end"
    COUNT = "count"
    IGNORE = "ignore"


State = TypeVar("State", bound=Enum)
Input = TypeVar("Input", bound=Enum)
Action = TypeVar("Action", bound=Enum)

_S, _I, _A = ServerState, ServerInput, ServerAction
_LIVE_SERVER: Final = (_S.NEW, _S.JOINED, _S.CONFIGURED)

SERVER_TABLE: Final[Mapping[tuple[ServerState, ServerInput], tuple[ServerState, ServerAction]]] = {
    (_S.NEW, _I.HELLO): (_S.JOINED, _A.JOIN),
    (_S.NEW, _I.METERS): (_S.NEW, _A.REFUSE_PLACE),
    (_S.JOINED, _I.METERS): (_S.JOINED, _A.WANT_METERS),
    (_S.CONFIGURED, _I.METERS): (_S.CONFIGURED, _A.WANT_METERS),
    (_S.NEW, _I.CLIENT_CONFIG): (_S.CONFIGURED, _A.JOIN_IMPLICITLY),
    (_S.JOINED, _I.HELLO): (_S.JOINED, _A.REFUSE_PLACE),
    (_S.JOINED, _I.CLIENT_CONFIG): (_S.CONFIGURED, _A.CONFIGURE),
    (_S.CONFIGURED, _I.HELLO): (_S.CONFIGURED, _A.REFUSE_PLACE),
    (_S.CONFIGURED, _I.CLIENT_CONFIG): (_S.CONFIGURED, _A.CONFIGURE),
    **{(state, _I.HEARTBEAT): (state, _A.NOTE_ALIVE) for state in _LIVE_SERVER},
    **{(state, _I.NTP_REQUEST): (state, _A.ANSWER_TIME) for state in _LIVE_SERVER},
    **{(state, _I.MALFORMED): (state, _A.REFUSE) for state in _LIVE_SERVER},
    **{
        (state, ending): (_S.CLOSED, _A.END)
        for state in _LIVE_SERVER
        for ending in (_I.BYE, _I.ABUSE, _I.SILENCE, _I.CLOSE, _I.LOST)
    },
    **{(_S.CLOSED, anything): (_S.CLOSED, _A.IGNORE) for anything in _I},
}

_C, _J, _B = ClientState, ClientInput, ClientAction
_LIVE_CLIENT: Final = (_C.GREETING, _C.WELCOMED, _C.STREAMING)

CLIENT_TABLE: Final[Mapping[tuple[ClientState, ClientInput], tuple[ClientState, ClientAction]]] = {
    (_C.IDLE, _J.START): (_C.GREETING, _B.GREET),
    (_C.IDLE, _J.CONFIGURE): (_C.IDLE, _B.KEEP_CONFIG),
    **{
        (_C.IDLE, early): (_C.IDLE, _B.COUNT)
        for early in (
            *(_J.WELCOME, _J.STREAM, _J.EVENT, _J.METERS, _J.ERROR, _J.NTP_RESPONSE),
            _J.MALFORMED,
        )
    },
    (_C.IDLE, _J.CLOSE): (_C.CLOSED, _B.END),
    (_C.GREETING, _J.CONFIGURE): (_C.GREETING, _B.KEEP_CONFIG),
    (_C.GREETING, _J.WELCOME): (_C.WELCOMED, _B.ENTER),
    (_C.GREETING, _J.STREAM): (_C.GREETING, _B.COUNT),
    (_C.WELCOMED, _J.CONFIGURE): (_C.WELCOMED, _B.SEND_CONFIG),
    (_C.WELCOMED, _J.WELCOME): (_C.WELCOMED, _B.COUNT),
    (_C.WELCOMED, _J.STREAM): (_C.STREAMING, _B.REPORT_STREAM),
    (_C.STREAMING, _J.CONFIGURE): (_C.STREAMING, _B.SEND_CONFIG),
    (_C.STREAMING, _J.WELCOME): (_C.STREAMING, _B.COUNT),
    (_C.STREAMING, _J.STREAM): (_C.STREAMING, _B.REPORT_STREAM),
    **{(state, _J.START): (state, _B.IGNORE) for state in _LIVE_CLIENT},
    **{(state, _J.EVENT): (state, _B.REPORT_EVENT) for state in _LIVE_CLIENT},
    (_C.GREETING, _J.METERS): (_C.GREETING, _B.COUNT),
    (_C.WELCOMED, _J.METERS): (_C.WELCOMED, _B.REPORT_METERS),
    (_C.STREAMING, _J.METERS): (_C.STREAMING, _B.REPORT_METERS),
    **{(state, _J.ERROR): (state, _B.REPORT_ERROR) for state in _LIVE_CLIENT},
    **{(state, _J.NTP_RESPONSE): (state, _B.TAKE_TIME) for state in _LIVE_CLIENT},
    **{(state, _J.MALFORMED): (state, _B.COUNT) for state in _LIVE_CLIENT},
    **{(state, _J.CLOSE): (_C.CLOSED, _B.LEAVE) for state in _LIVE_CLIENT},
    **{
        (state, ending): (_C.CLOSED, _B.END)
        for state in (_C.IDLE, *_LIVE_CLIENT)
        for ending in (_J.ABUSE, _J.SILENCE, _J.LOST)
    },
    **{(_C.CLOSED, anything): (_C.CLOSED, _B.IGNORE) for anything in _J},
}


def mermaid(table: Mapping[tuple[State, Input], tuple[State, Action]]) -> str:
    """Draw a table as a Mermaid ``stateDiagram-v2``.

    The first state of the enumeration is where it begins.  What is ignored is not drawn, and
    several inputs with the same way and action share an arrow.

    :returns: text with a line feed at its end.
    """
    arrows: dict[tuple[str, str, str], list[str]] = {}
    states = list(type(next(iter(table))[0]))
    for (state, what), (target, action) in sorted(
        table.items(), key=lambda row: states.index(row[0][0])
    ):
        if action.name != "IGNORE":
            arrows.setdefault((state.name, target.name, action.value), []).append(what.value)
    lines = ["stateDiagram-v2", f"    [*] --> {states[0].name}"]
    for (source, target_name, action_text), inputs in arrows.items():
        lines.append(f"    {source} --> {target_name}: {', '.join(inputs)} / {action_text}")
    lines.extend(f"    {state.name} --> [*]" for state in states if state.name == "CLOSED")
    return "\n".join(lines) + "\n"
