"""``m32net migrate``: moves the listeners of a running server, and shows how far it is (CON-51).

Talks to the server by its REST interface: on its own machine through the socket in the state
directory, from elsewhere by its address and the engineer's password.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from twisted.internet import defer, task
from twisted.python import usage
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.iweb import IAgent

from m32net.asking import ask, words
from m32net.config import default_state_dir
from m32net.ops.local import SERVER_SOCKET, local_agent, read_token, socket_path
from m32net.printable import printable, printable_json
from m32net.trust.context import authorities
from m32net.trust.files import TrustError
from m32net.trust.identity import certificates

POLL_S: Final = 0.5
TIMEOUT_S: Final = 30.0
"""For the first answer; the server looks at the new one meanwhile."""
MAX_ANSWER: Final = 16 * 1024 * 1024
"""As many listeners as there may be, each with the longest name: some 12 MB."""
PASSWORD_VARIABLE: Final = "M32NET_PASSWORD"  # noqa: S105 - the variable's name
OVER: Final = {"done": 0, "incomplete": 3, "failed": 1, "cancelled": 1}
"""Exit status by the state it ends in."""


class MigrateError(Exception):
    """One line for the person at the terminal."""


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(f"{text} is outside {low:g}..{high:g}")
        return value

    return parse


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise ValueError("it is HOST:PORT, such as 10.0.0.7:8080")
    return host, int(port)


class MigrateOptions(usage.Options):
    """``m32net migrate``."""

    synopsis = "--to HOST:PORT [--after S] [--each S] | --status | --cancel"
    longdesc = (
        "Moves all listeners of a running server to another one, one after the other and without "
        "a gap. Exit status: 0 all moved, 3 some stayed, 1 failed or called off. "
        "docs/operations.md tells more, also how to change the version on one machine."
    )
    optParameters: Final = [
        ["to", "t", None, "Web address of the new server, HOST:PORT.", _address],
        ["after", "a", 30.0, "Seconds until the first listener moves.", _number(0, 3600)],
        ["each", "e", 0.5, "Seconds between one listener and the next.", _number(0, 60)],
        ["state-dir", "d", None, "The old server's state directory. [default: the usual one]"],
        ["server", "s", None, "Address of the old server, http://HOST:PORT, if it is elsewhere."],
        [
            "user",
            "u",
            "admin",
            f"With --server: who logs in; password asked, or ${PASSWORD_VARIABLE}.",
        ],
        ["ca", None, None, "With --server https://...: PEM file of the CA to trust."],
    ]
    optFlags: Final = [
        ["status", None, "Only show how far a migration is."],
        ["cancel", None, "Call a migration off."],
        ["no-wait", None, "Do not wait until all have moved."],
        ["json", None, "Print one JSON object for every change."],
    ]

    def postOptions(self) -> None:
        """One of the three things it does."""
        if sum((self["to"] is not None, self["status"], self["cancel"])) != 1:
            raise usage.UsageError("give one of --to, --status and --cancel")


class Server:
    """The REST interface of the old server, with a log-in.

    :param clock: for time-outs.
    :param agent: keeps its connection: while a successor takes over, a new one reaches that.
    """

    def __init__(
        self,
        clock: Any,
        agent: IAgent,
        base: str,
        token: str = "",  # nosec B107 # none yet
    ) -> None:
        self._clock = clock
        self._agent = agent
        self._base = base
        self.token = token

    @defer.inlineCallbacks
    def call(self, method: str, path: str, body: object = None) -> Any:
        """:raises MigrateError: what the server refuses, in its words."""
        try:
            answer = yield ask(
                self._clock,
                self._agent,
                method,
                self._base + path,
                headers={"Authorization": f"Bearer {self.token}"} if self.token else None,
                body=None if body is None else msgspec.json.encode(body),
                timeout_s=TIMEOUT_S,
                limit=MAX_ANSWER,
            )
        except Exception as error:
            raise MigrateError(f"the server does not answer: {printable(words(error))}") from None
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if answer.status == 200 and isinstance(found, dict):
            return found
        said = found.get("error") if isinstance(found, dict) else None
        why = said.get("message") if isinstance(said, dict) else None
        raise MigrateError(
            printable(str(why)) if why else f"the server answers with status {answer.status}"
        )


@defer.inlineCallbacks
def _connect(reactor: Any, options: Mapping[str, Any]) -> Any:
    pool: Any = HTTPConnectionPool(reactor)  # type: ignore[no-untyped-call]
    pool.maxPersistentPerHost = 1
    if options["server"] is None:
        directory = Path(options["state-dir"] or default_state_dir(os.environ)).expanduser()
        try:
            token, path = read_token(directory), socket_path(directory, SERVER_SOCKET)
            Path(path).stat()  # a token may be left of a server that has gone
        except OSError:
            raise MigrateError(
                f"no server runs in {directory} that you may move; name its state directory with "
                "--state-dir, or its address with --server if it runs elsewhere"
            ) from None
        return Server(reactor, local_agent(reactor, path, pool), "http://localhost", token)
    base = options["server"].rstrip("/")
    if not base.startswith(("http://", "https://")):
        base = f"http://{base}"
    policy = BrowserLikePolicyForHTTPS(_trust(options["ca"]))  # type: ignore[no-untyped-call]
    agent: Any = Agent(reactor, policy, pool=pool)  # type: ignore[no-untyped-call]
    server = Server(reactor, agent, base)
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None:
        password = getpass.getpass(f"Password of {options['user']}: ")
    session = yield server.call(
        "POST", "/api/login", {"user": options["user"], "password": password}
    )
    server.token = session["token"]
    return server


def _trust(path: str | None) -> Any:
    """:raises MigrateError: there is nothing in it to trust."""
    if path is None:
        return None
    try:
        return authorities(certificates(Path(path)))
    except TrustError as error:
        raise MigrateError(str(error)) from None


class Display:
    """Tells how far it is: lines for people, one that is written over on a terminal, or JSON."""

    def __init__(self, *, as_json: bool, terminal: bool) -> None:
        self._json = as_json
        self._terminal = terminal and not as_json
        self._last = ""

    def show(self, status: Mapping[str, Any]) -> None:
        """Print what has changed since the last time."""
        text = printable_json(status) if self._json else sentence(status)
        if text == self._last:
            return
        if self._terminal:
            sys.stdout.write("\r" + " " * len(self._last) + "\r" + text)
            sys.stdout.flush()
        else:
            print(text, flush=True)
        self._last = text

    def end(self) -> None:
        if self._terminal and self._last:
            print()


def sentence(status: Mapping[str, Any]) -> str:
    """A status in one line, fit for a terminal."""
    state, moves = status["state"], status["moves"]
    if state == "idle":
        return "No migration has been asked for."
    where = f"{status['host']}:{status['port']}"
    counts = Counter(one["state"] for one in moves)
    parts = [f"{counts['moved']} of {len(moves)} listeners moved to {where}"]
    parts += [f"{counts[word]} {word}" for word in ("stayed", "left") if counts[word]]
    to_go = counts["told"] + counts["waiting"]
    if to_go:
        parts.append(f"{to_go} to go")
    words = {"checking": "Looking at the new server", "moving": "Moving", "done": "Done"}
    line = f"{words.get(state, state.capitalize())}: {', '.join(parts)}"
    if status["reason"]:
        line += f" ({status['reason']})"
    stayed = [one["name"] or one["client_id"] for one in moves if one["state"] == "stayed"]
    if state == "incomplete":
        line += f"; still here: {', '.join(stayed[:20])}" + (", …" if len(stayed) > 20 else "")
    return printable(line)


@defer.inlineCallbacks
def run(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Do what the options say.

    :returns: fires with the exit status.
    :raises MigrateError: one line.
    """
    server = yield _connect(reactor, options)
    display = Display(as_json=options["json"], terminal=sys.stdout.isatty())
    if options["to"] is None:
        method = "DELETE" if options["cancel"] else "GET"
        status = yield server.call(method, "/api/migration")
        display.show(status)
        display.end()
        return 0
    host, port = options["to"]
    order = {"host": host, "port": port, "after_s": options["after"], "each_s": options["each"]}
    status = yield server.call("POST", "/api/migration", order)
    display.show(status)
    while status["state"] not in OVER and not options["no-wait"]:
        yield task.deferLater(reactor, POLL_S)
        status = yield server.call("GET", "/api/migration")
        display.show(status)
    display.end()
    if status["state"] == "done" and not options["json"]:
        print(f"The old server takes nobody any more; `kill -TERM {status['pid']}` stops it.")
    return OVER.get(status["state"], 0)
