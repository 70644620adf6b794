"""CON-50, CON-51: stopping, moving listeners, and a new version on the same ports, for real.

Real servers, real ``m32net listen --record``, real ``m32net migrate``.  The source is noise of
which no two moments are alike, so a recording shows of every sample where it comes from.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from twisted.trial import unittest

from tests.support.ports import FIRST, LAST, free_pair
from tests.support.processes import HOST, Child, ListenProcess, ServerProcess, wait_for
from tests.support.websocket import CLOSE, HANDSHAKE, TEXT, frame, frames

RATE = 48_000
CHANNELS = 8
LISTENERS = 3
DELAY_MS = 400
"""The listeners' buffers: so long may a busy machine stop for without a gap."""
FADE = RATE * 20 // 1000
"""Samples in which a listener goes from one server's audio over to the other's."""
Samples = npt.NDArray[np.int32]


def free_tcp() -> int:
    """A TCP port nobody listens on, out of the way of those the system gives away."""
    for port in random.SystemRandom().sample(range(FIRST, LAST), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise OSError("no free TCP port")


def noise(seconds: float, seed: int) -> Samples:
    source = np.random.default_rng(seed)
    size = (int(seconds * RATE), CHANNELS)
    return source.integers(-(2**23), 2**23, size, dtype=np.int32) << 8


def places(recorded: Samples, original: Samples) -> npt.NDArray[np.int64]:
    """Row of the original at which each recorded row stands, bit for bit; -1 where it does not."""
    keys = [(one[:, 0].astype(np.int64) << 32) ^ one[:, 1] for one in (recorded, original)]
    order = np.argsort(keys[1])
    found = np.minimum(np.searchsorted(keys[1], keys[0], sorter=order), len(order) - 1)
    rows = order[found]
    rows[(original[rows] != recorded).any(axis=1)] = -1
    return rows


def runs(recorded: Samples, bands: list[Samples]) -> list[tuple[int, int, int]]:
    """Where the recording is bit for bit what a server plays: its number, first row and end."""
    found = []
    for number, original in enumerate(bands):
        rows = places(recorded, original)
        at = np.nonzero(rows >= 0)[0]
        offset = (rows[at] - at) % len(original)
        cuts = np.nonzero((np.diff(at) != 1) | (np.diff(offset) != 0))[0] + 1
        for part in np.split(at, cuts):
            if len(part):
                found.append((number, int(part[0]), int(part[-1]) + 1))
    return sorted(found, key=lambda one: one[1])


def exchange(port: int, messages: list[dict[str, Any]]) -> list[tuple[int, bytes]]:
    """Say something on a new WebSocket; what is answered until it is closed or 5 s are over."""
    with socket.create_connection((HOST, port), timeout=5) as sock:
        sock.sendall(HANDSHAKE)
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(4096)
        data = data.partition(b"\r\n\r\n")[2]
        for one in messages:
            sock.sendall(frame(TEXT, json.dumps(one).encode()))
        with contextlib.suppress(OSError):
            while True:
                more = sock.recv(4096)
                if not more:
                    break
                data += more
                if any(opcode == CLOSE for opcode, _ in frames(data)):
                    break
        return frames(data)


def join(port: int) -> socket.socket:
    """A control connection that has said hello, and reads nothing more by itself."""
    sock = socket.create_connection((HOST, port), timeout=10)
    sock.sendall(HANDSHAKE)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    sock.sendall(frame(TEXT, b'{"type":"hello"}'))
    return sock


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def status_of(url: str) -> tuple[int, str | None]:
    """Status and Location of a GET that follows no redirect."""
    opener = urllib.request.build_opener(NoRedirect)
    try:
        with opener.open(url, timeout=5) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Location"]


class MigrationCase(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="m32net-test-"))
        self.addCleanup(shutil.rmtree, self.directory)

        self.bands: list[Samples] = []

    def source(self) -> str:
        """Another band at the same path for every server, so that one hears whose audio it is."""
        self.bands.append(noise(8, len(self.bands)))
        path, fresh = self.directory / "band.wav", self.directory / "fresh.wav"
        soundfile.write(fresh, self.bands[-1], RATE, subtype="PCM_24")
        fresh.replace(path)
        return f"--source=file:{path}"

    def serve(self, *options: str, name: str = "a", **how: Any) -> ServerProcess:
        server = ServerProcess(*options, state_dir=str(self.directory / name), **how)
        self.addCleanup(server.close)
        return server

    def listen(self, url: str, count: int = LISTENERS, *options: str) -> list[ListenProcess]:
        """Listeners that record, once all of them hear something."""
        children = []
        for number in range(count):
            child = ListenProcess(
                url,
                "--udp-port=0",
                "--interface=127.0.0.1",
                "--codec=L24",
                f"--name=phone {number}",
                f"--record={self.directory / f'{number}.wav'}",
                *options,
                environment={"FORCE_DELAY_MS": str(DELAY_MS)},
            )
            self.addCleanup(child.close)
            children.append(child)
        for child in children:
            wait_for(lambda child=child: heard(child) > 0, "audio flows", 60)
        return children

    def migrate(self, *options: str, name: str = "a") -> Child:
        command = [sys.executable, "-m", "m32net.cli", "migrate"]
        child = Child([*command, f"--state-dir={self.directory / name}", *options])
        self.addCleanup(child.close)
        return child

    def finish(self, children: list[ListenProcess]) -> list[dict[str, Any]]:
        """Let everybody hear the new server for a while, stop them, give their summaries."""
        for child in children:
            before = heard(child)
            wait_for(lambda c=child, b=before: heard(c) > b, "audio still flows", 20)
        time.sleep(2)  # so that there is some of the new server in the recordings
        for child in children:
            child.process.send_signal(signal.SIGINT)
        summaries = []
        for child in children:
            self.assertEqual(child.wait(30), 0, child.text())
            summaries += [one for one in child.reports() if one["type"] == "summary"]
        self.assertEqual(len(summaries), len(children))
        return summaries

    def check_recordings(self, children: list[ListenProcess]) -> None:
        """No gap: both servers' audio bit for bit, and one cross-fade between them.

        A second before and after it everything must be right; what a busy machine does to a
        recording elsewhere is not the question here.
        """
        for number, summary in enumerate(self.finish(children)):
            self.assertEqual(summary["reconnects"], 0, summary)
            self.assertEqual(len(summary["recorded"]), 1, "one file: the recording went on")
            recorded, _ = soundfile.read(
                self.directory / f"{number}.wav", dtype="int32", always_2d=True
            )
            rows = np.asarray(recorded)
            stretches = runs(rows, self.bands)
            heard_from = [who for who, _, _ in stretches]
            self.assertEqual(heard_from, sorted(heard_from), "nobody goes back")
            (_, first, gone) = [one for one in stretches if one[0] == 0][-1]
            (_, come, last) = next(one for one in stretches if one[0] == 1)
            where = f"listener {number}: {stretches}"
            self.assertLessEqual(come - gone, FADE, where)
            self.assertTrue(rows[gone:come].any(axis=1).all(), "no silence in it")
            self.assertGreater(gone - first, RATE, where)
            self.assertGreater(last - come, RATE, where)

    def listeners(self, server: ServerProcess, token: str) -> dict[str, dict[str, Any]]:
        """By id."""
        found = server.call("GET", "/api/listeners", token=token)[1]["listeners"]
        return {one["client_id"]: one for one in found}


def heard(child: ListenProcess) -> int:
    """Packets so far."""
    progress = [one for one in child.reports() if one["type"] == "progress"]
    return sum(one["packets"] for one in progress)


class TwoServersTest(MigrationCase):
    def test_moved_without_a_gap(self) -> None:
        """CON-51: three listeners of one server go to another; newcomers are sent there too."""
        old = self.serve(self.source())
        self.assertTrue(old.port)
        new = self.serve(self.source(), name="b")
        children = self.listen(old.url)
        here = self.listeners(old, old.login()).values()
        self.assertEqual(len(here), LISTENERS)
        self.assertTrue(all(one["control"]["messages_received"] > 1 for one in here), "CON-13")
        mover = self.migrate(f"--to={HOST}:{new.port}", "--after=1", "--each=0.5", "--json")
        self.assertEqual(mover.wait(60), 0, mover.text())
        shown = [json.loads(line) for line in mover.text().splitlines()]
        self.assertEqual(shown[-1]["state"], "done")
        self.assertEqual([one["state"] for one in shown[-1]["moves"]], ["moved"] * LISTENERS)
        token = new.login()
        wait_for(lambda: len(self.listeners(new, token)) == LISTENERS, "all are there")
        names = {one["name"] for one in self.listeners(new, token).values()}
        self.assertEqual(names, {f"phone {n}" for n in range(LISTENERS)})
        self.assertEqual(self.listeners(old, old.login()), {})
        self.newcomers(old, new)
        self.check_recordings(children)

    def newcomers(self, old: ServerProcess, new: ServerProcess) -> None:
        """CON-51: 307 on HTTP, serverMigration and 1012 on the WebSocket, and a real listener."""
        there = f"http://{HOST}:{new.port}"
        for path in ("/", "/audio-meta"):
            self.assertEqual(status_of(old.url + path), (307, there + path))
        for path in ("/health", "/metrics", "/admin", "/api/peer"):
            self.assertEqual(status_of(old.url + path), (200, None))
        (told, event), *_, (opcode, close) = exchange(
            old.port, [{"type": "hello", "payload": {"name": "late"}}]
        )
        self.assertEqual((told, opcode), (TEXT, CLOSE))
        data = {"new_host": HOST, "new_port": new.port, "migrate_after": 0}
        self.assertEqual(json.loads(event)["event"], "serverMigration")
        self.assertEqual(json.loads(event)["data"], data)
        self.assertEqual(int.from_bytes(close[:2], "big"), 1012)
        options = ("--udp-port=0", "--interface=127.0.0.1", "--duration=3", "--name=late")
        late = ListenProcess(old.url, *options)
        self.addCleanup(late.close)
        self.assertEqual(late.wait(60), 0, late.text())
        self.assertGreater(heard(late), 0)

    def test_called_off(self) -> None:
        """CON-51: who has not moved when it is called off stays where it is, undisturbed."""
        old, new = self.serve("--source=test"), self.serve("--source=test", name="b")
        children = self.listen(old.url, 2)
        mover = self.migrate(f"--to={HOST}:{new.port}", "--after=600", "--no-wait")
        self.assertEqual(mover.wait(60), 0, mover.text())
        self.assertEqual(status_of(old.url + "/audio-meta")[0], 307)
        status = self.migrate("--status")
        self.assertEqual(status.wait(60), 0)
        self.assertIn("2 to go", status.text())
        cancel = self.migrate("--cancel")
        self.assertEqual(cancel.wait(60), 0)
        self.assertIn("2 stayed", cancel.text())
        self.assertEqual(status_of(old.url + "/audio-meta")[0], 200)
        self.assertEqual(len(self.listeners(old, old.login())), 2)
        for summary in self.finish(children):
            self.assertEqual((summary["lost"], summary["reconnects"], summary["moves"]), (0, 0, []))

    def taken(self, server: ServerProcess) -> None:
        """Newcomers are, on HTTP and on the WebSocket."""
        self.assertEqual(status_of(server.url + "/audio-meta"), (200, None))
        (told, first), *more = exchange(server.port, [{"type": "hello"}])
        self.assertEqual((told, json.loads(first)["type"]), (TEXT, "welcome"))
        self.assertNotIn(CLOSE, [opcode for opcode, _ in more])

    def test_again(self) -> None:
        """CON-51: begun again when all is done, and called off or refused then: newcomers are
        taken, not sent away for ever.
        """
        old, new = self.serve("--source=test"), self.serve("--source=test", name="b")
        small = self.serve("--source=test", "--channels=4", name="c")
        for end, status in ((["--cancel"], 0), ([f"--to={HOST}:{small.port}"], 1)):
            for _ in range(2):
                mover = self.migrate(f"--to={HOST}:{new.port}", "--after=0")
                self.assertEqual(mover.wait(60), 0, mover.text())
                self.assertEqual(status_of(old.url + "/audio-meta")[0], 307)
            ending = self.migrate(*end)
            self.assertEqual(ending.wait(60), status, ending.text())
            self.taken(old)

    def test_new_server_dies(self) -> None:
        """CON-51: when it no longer answers, nobody is sent there; the old one goes on."""
        old, new = self.serve("--source=test"), self.serve("--source=test", name="b")
        children = self.listen(old.url, 2)
        mover = self.migrate(f"--to={HOST}:{new.port}", "--after=60")
        wait_for(lambda: "2 to go" in mover.text(), "they are told")
        new.stop(signal.SIGKILL)
        self.assertEqual(mover.wait(60), 1, mover.text())
        self.assertIn("no longer answers", mover.text())
        self.assertEqual(status_of(old.url + "/audio-meta")[0], 200)
        for summary in self.finish(children):
            self.assertEqual((summary["lost"], summary["reconnects"], summary["moves"]), (0, 0, []))

    def test_identity_goes_along(self) -> None:
        """CON-51, CON-32: servers that trust each other hand the listeners' ids over."""
        ca = {name: self.directory / name / "tls" / "ca.pem" for name in ("a", "b")}
        for name in ("a", "b"):  # so that each has a CA
            first = self.serve("--source=test", "--https=tcp:0", name=name)
            self.assertTrue(first.port)
            first.stop()
        secure = ("--source=test", "--https=tcp:0")
        # Their users exist by now: log-ins are by the local token.
        old = self.serve(*secure, f"--peer-ca={ca['b']}")
        new = self.serve(*secure, f"--peer-ca={ca['a']}", name="b")
        tokens = {n: (self.directory / n / "admin-token").read_text().strip() for n in ("a", "b")}
        children = self.listen(old.url, 2)
        before = self.listeners(old, tokens["a"])
        mover = self.migrate(f"--to={HOST}:{new.port}", "--after=0", "--each=0.5")
        self.assertEqual(mover.wait(60), 0, mover.text() + old.text())
        after = self.listeners(new, tokens["b"])
        self.assertEqual(
            {key: one["name"] for key, one in after.items()},
            {key: one["name"] for key, one in before.items()},
        )
        self.finish(children)

    def test_strangers_hand_nobody_over(self) -> None:
        """CON-51, CON-32: without trust the listeners still move, as new ones."""
        secure = ("--source=test", "--https=tcp:0")
        old, new = self.serve(*secure), self.serve(*secure, name="b")
        children = self.listen(old.url, 1)
        before = self.listeners(old, old.login())
        mover = self.migrate(f"--to={HOST}:{new.port}", "--after=0")
        self.assertEqual(mover.wait(60), 0, mover.text())
        after = self.listeners(new, new.login())
        self.assertEqual(len(after), 1)
        self.assertFalse(set(after) & set(before))
        self.assertIn("takes the listeners as new ones", old.text())
        self.finish(children)


class RefusedTest(MigrationCase):
    def test_what_can_not_be(self) -> None:
        """CON-51: a new server that can't be is told in one line; nobody is disturbed."""
        old = self.serve("--source=test")
        small = self.serve("--source=test", "--channels=4", name="b")

        class Other(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<h1>It works</h1>")

            def log_message(self, *_: Any) -> None:
                pass

        other = HTTPServer((HOST, 0), Other)
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        self.addCleanup(other.server_close)
        self.addCleanup(other.shutdown)
        assert old.port
        for target, words in (
            (free_tcp(), "can't be reached"),
            (other.server_port, "is no m32net server"),
            (small.port, "does not send 5, 6"),
            (old.port, "is this server itself"),
        ):
            mover = self.migrate(f"--to={HOST}:{target}")
            self.assertEqual(mover.wait(60), 1, mover.text())
            (line,) = mover.text().splitlines()
            self.assertIn(words, line)
            self.assertEqual(status_of(old.url + "/audio-meta")[0], 200)

    def test_command(self) -> None:
        """What a person can get wrong is one line."""
        for options, words in (
            ([], "give one of"),
            (["--to=stage-b"], "HOST:PORT"),
            (["--to=x:1", "--status"], "give one of"),
            (["--to=x:1", "--after=-1"], "outside 0..3600"),
            (["--status"], "no server runs in"),
        ):
            mover = self.migrate(*options, name="nowhere")
            self.assertNotEqual(mover.wait(60), 0, options)
            self.assertIn(words, mover.text())
            self.assertNotIn("Traceback", mover.text())

    def test_from_elsewhere(self) -> None:
        """CON-51: by address and password instead of the state directory."""
        old, new = self.serve("--source=test"), self.serve("--source=test", name="b")
        command = [sys.executable, "-m", "m32net.cli", "migrate", f"--server={old.url}"]
        command += [f"--to={HOST}:{new.port}", "--after=0"]
        for password, status, words in (
            ("wrong", 1, "wrong user or password"),
            (old.password, 0, "0 of 0 listeners moved"),
        ):
            mover = Child(command, environment={"M32NET_PASSWORD": password})
            self.addCleanup(mover.close)
            self.assertEqual(mover.wait(60), status, mover.text())
            self.assertIn(words, mover.text())


class RollingUpgradeTest(MigrationCase):
    """CON-51: a new process on the same machine, ports and state directory."""

    def pair(self, *options: str) -> tuple[ServerProcess, list[str]]:
        """The running server, and the options its successor needs besides."""
        port, rtp = free_tcp(), free_pair()
        same = [*options, f"--http=tcp:{port}", f"--rtp-port={rtp}"]
        old = self.serve(*same)
        self.assertEqual(old.port, port)
        return old, same

    def follow(self, same: list[str]) -> ServerProcess:
        new = self.serve(*same, "--take-over")
        wait_for(lambda: "Waiting for the place" in new.text(), "the successor is ready")
        return new

    def test_rolling_upgrade(self) -> None:
        """CON-51: same address, same ids, settings kept, no gap; the old one ends with 0."""
        old, same = self.pair(self.source())
        token = old.login()
        self.assertEqual(old.call("PUT", "/api/settings", {"max_listeners": 7}, token)[0], 200)
        children = self.listen(old.url)
        before = self.listeners(old, token)
        local = (self.directory / "a" / "admin-token").read_text().strip()
        self.source()
        new = self.follow(same)
        self.assertEqual(old.call("GET", "/api/session", token=token)[0], 200, "still the old one")
        mover = self.migrate(f"--to={HOST}:{old.port}", "--after=1", "--each=0.5")
        self.assertEqual(mover.wait(60), 0, mover.text() + old.text() + new.text())
        self.assertIn(f"kill -TERM {old.pid}", mover.text())
        after = self.listeners(old, local)  # by the old one's port, which is the successor's now
        self.assertEqual(set(after), set(before))
        name = {"id": 1, "name": "Vocal 🎤"}
        status, answer = old.call("PUT", "/api/channels", [name], local)
        self.assertEqual((status, answer["error"]["code"]), (503, "taking_over"))
        self.assertEqual(old.stop(), 0, old.text())
        wait_for(lambda: "Engineer:" in new.text(), "the successor has taken over", 10)
        self.assertEqual(new.call("PUT", "/api/channels", [name], local)[0], 200)
        settings = new.call("GET", "/api/settings", token=local)[1]
        self.assertEqual(settings["max_listeners"], 7)
        self.assertEqual(new.get("/health")["status"], "healthy")
        self.check_recordings(children)
        third = self.follow(same)  # and so on
        self.assertEqual(third.stop(), 0, third.text())
        self.assertEqual(new.stop(), 0, new.text())
        for server in (old, new, third):
            self.assertNotIn("Traceback", server.text())

    def test_over_tls(self) -> None:
        """CON-51, CON-32: who listens over TLS goes on over TLS."""
        port = free_tcp()
        old, same = self.pair("--source=test", f"--https=tcp:{port}")
        authority = f"--ca={self.directory / 'a' / 'tls' / 'ca.pem'}"
        children = self.listen(f"https://{HOST}:{port}", 1, authority)
        new = self.follow(same)
        mover = self.migrate(f"--to={HOST}:{old.port}", "--after=0")
        self.assertEqual(mover.wait(60), 0, mover.text() + children[0].text())
        self.assertEqual(old.stop(), 0, old.text())
        (summary,) = self.finish(children)
        self.assertEqual((len(summary["moves"]), summary["reconnects"]), (1, 0))
        self.assertEqual(new.stop(), 0, new.text())

    def test_again_and_called_off(self) -> None:
        """CON-51: begun again by the same address, it is the successor's; called off, the old
        server alone listens and takes settings.
        """
        old, same = self.pair("--source=test")
        token = (self.directory / "a" / "admin-token").read_text().strip()
        assert old.port

        def answering() -> set[int]:
            shown = (old.call("GET", "/api/migration", token=token)[1] for _ in range(10))
            return {one["pid"] for one in shown}

        new = self.follow(same)
        for _ in range(2):
            mover = self.migrate(f"--to={HOST}:{old.port}", "--after=0")
            self.assertEqual(mover.wait(60), 0, mover.text() + old.text() + new.text())
            self.assertEqual(answering(), {new.pid})
        cancel = self.migrate("--cancel")
        self.assertEqual(cancel.wait(60), 0, cancel.text())
        wait_for(lambda: answering() == {old.pid}, "the old one listens, the successor does not")
        self.assertEqual(old.call("PUT", "/api/settings", {"max_listeners": 7}, token)[0], 200)
        again = self.migrate(f"--to={HOST}:{old.port}", "--after=0")
        self.assertEqual(again.wait(60), 0, again.text())
        self.assertEqual(old.stop(), 0, old.text())
        wait_for(lambda: "Engineer:" in new.text(), "the successor has taken over", 10)
        self.assertEqual(answering(), {new.pid})
        for server in (old, new):
            self.assertNotIn("Traceback", server.text())

    def test_settings_changed_before(self) -> None:
        """CON-51: what the old one stores after its successor started is what counts."""
        old, same = self.pair("--source=test")
        new = self.follow(same)
        status, _ = old.call("PUT", "/api/channels", [{"id": 2, "name": "Bass"}], old.login())
        self.assertEqual(status, 200)
        self.assertEqual(old.stop(), 0)
        self.assertEqual(new.get("/audio-meta")["channels"][1]["name"], "Bass")

    def test_old_one_killed(self) -> None:
        """CON-51: a successor in waiting takes over whatever became of the old server."""
        old, same = self.pair("--source=test")
        new = self.follow(same)
        old.stop(signal.SIGKILL)
        self.assertEqual(new.port, old.port)
        self.assertEqual(new.get("/health")["status"], "healthy")

    def test_successor_killed(self) -> None:
        """CON-51: the old server takes new connections and settings again."""
        old, same = self.pair("--source=test")
        token = old.login()
        children = self.listen(old.url, 1)
        new = self.follow(same)
        mover = self.migrate(f"--to={HOST}:{old.port}", "--after=600")
        wait_for(lambda: "1 to go" in mover.text(), "it is told")
        new.stop(signal.SIGKILL)
        self.assertEqual(mover.wait(60), 1, mover.text())
        wait_for(
            lambda: "New connections are taken here again" in old.text(), "the old one listens"
        )
        self.assertEqual(old.call("PUT", "/api/settings", {"max_listeners": 7}, token)[0], 200)
        for summary in self.finish(children):
            self.assertEqual((summary["lost"], summary["reconnects"], summary["moves"]), (0, 0, []))

    def test_only_one_waits(self) -> None:
        """CON-51: a second successor is told so; so is a server that does not want to follow."""
        _, same = self.pair("--source=test")
        self.follow(same)
        for more, words in (
            (("--take-over",), "another server waits already"),
            ((), "another m32net server uses"),
        ):
            refused = self.serve(*same, *more)
            self.assertEqual(refused.wait(60), 1, refused.text())
            self.assertIn(words, refused.text())


class StoppingTest(MigrationCase):
    def test_second_signal_ends_at_once(self) -> None:
        """CON-50: whoever is in a hurry sends it twice."""
        server = self.serve("--source=test")
        with socket.create_connection((HOST, server.port)) as stuck:
            stuck.sendall(b"GET /audio-meta HTTP/1.1\r\nHost: x\r\n")
            server.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            while server.running() and time.monotonic() < begun + 10:
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.02)
            took = time.monotonic() - begun
        self.assertIn(server.wait(10), {-signal.SIGTERM, 0})
        self.assertLess(took, 5)

    def test_stuck_clients(self) -> None:
        """CON-50: clients that neither read nor answer don't keep the server beyond its bound."""
        server = self.serve("--source=test")
        stuck = []
        for number in range(5):
            if number == 0:
                sock = socket.create_connection((HOST, server.port))
                sock.sendall(b"POST /qos-metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            else:
                sock = join(server.port)
            self.addCleanup(sock.close)
            stuck.append(sock)
        wait_for(lambda: server.get("/audio-meta")["listeners"] == 4, "they are in")
        begun = time.monotonic()
        self.assertEqual(server.stop(timeout_s=40), 0, server.text())
        self.assertLess(time.monotonic() - begun, 30)
        self.assertNotIn("Traceback", server.text())

    def test_told_and_refused(self) -> None:
        """CON-50: server_shutdown with its fields, then the end; no new connection meanwhile."""
        server = self.serve("--source=test")
        with join(server.port) as sock:
            data = b""
            while b"welcome" not in data:
                data += sock.recv(4096)
            server.process.send_signal(signal.SIGTERM)
            while b"server_shutdown" not in data:
                more = sock.recv(4096)
                self.assertTrue(more)
                data += more
            with socket.socket() as late:
                self.assertNotEqual(late.connect_ex((HOST, server.port)), 0)
            answers = [json.loads(text) for opcode, text in frames(data) if opcode == TEXT]
        event = answers[-1]["payload"]
        self.assertEqual(event["type"], "server_shutdown")
        self.assertEqual((event["reason"], event["reconnect_after"]), ("maintenance", 60))
        self.assertEqual(server.wait(40), 0)
