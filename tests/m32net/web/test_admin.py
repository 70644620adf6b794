"""STR-8, STR-9, STR-10, STR-12, STR-43: what the engineer does, and nobody else can."""

from __future__ import annotations

import sqlite3
from typing import Any

from twisted.web.http_headers import Headers

from m32net.interfaces import QualityReport
from m32net.settings import AudioConfigChanged, ChannelsChanged
from m32net.web.operations import OPERATIONS
from tests.m32net.web.case import HOST, WebCase
from tests.support.rooms import listener_status


class Guard(WebCase):
    def test_every_admin_route(self) -> None:
        """STR-9: 401 without a session, whatever the body; with one, not 401."""
        guarded = [op for op in OPERATIONS if op.admin]
        self.assertGreater(len(guarded), 12)
        self.assertLessEqual(
            {op.path for op in OPERATIONS if op.method == "put"}, {op.path for op in guarded}
        )
        for op in guarded:
            answer = self.request(op.method.upper(), op.path, b"no json")
            self.assertEqual((answer.status, answer.code), (401, "not_logged_in"), op)
            self.assertEqual(answer.header("WWW-Authenticate"), "Bearer")
        self.log_in()
        for op in guarded:
            self.assertNotEqual(self.request(op.method.upper(), op.path, b"x").status, 401, op)

    def test_wrong_tokens(self) -> None:
        for token in ("", "x", "é" * 9, "Bearer", "a" * 5000):
            headers = {"Authorization": f"Bearer {token}"}
            self.assertEqual(self.get("/api/session", headers=headers).status, 401)

    def test_headers_that_are_no_text(self) -> None:
        """Refused like any wrong one; no traceback for everybody who feels like it."""
        for name, status in ((b"Authorization", 401), (b"Cookie", 401), (b"Origin", 403)):
            headers = Headers({name: [b"Bearer \xff\xfe"]})
            pending = self.treq.request("PUT", f"{HOST}/api/channels", data=b"[]", headers=headers)
            if name == b"Origin":
                headers.setRawHeaders(b"Authorization", [f"Bearer {self.log_in()}".encode()])
                pending = self.treq.request(
                    "PUT", f"{HOST}/api/channels", data=b"[]", headers=headers
                )
            self.treq.flush()
            self.assertEqual(self.successResultOf(pending).code, status, name)

    def test_cookie(self) -> None:
        """The page's way: HttpOnly, SameSite=Strict; it opens what the token opens."""
        answer = self.send("POST", "/api/login", {"password": self.password})
        cookie = str(answer.header("Set-Cookie"))
        self.assertIn("HttpOnly", cookie)
        self.assertIn("SameSite=Strict", cookie)
        self.assertNotIn("Secure", cookie)
        headers = {"Cookie": cookie.split(";")[0]}
        self.assertEqual(self.get("/api/session", headers=headers).json["user"], "admin")
        self.request("POST", "/api/logout", headers=headers)
        self.assertEqual(self.get("/api/session", headers=headers).status, 401)

    def test_other_sites_pages(self) -> None:
        """A page of another origin can't use the browser's session."""
        self.log_in()
        for origin, status in (
            (HOST, 200),
            ("http://evil.test", 403),
            ("null", 403),
            ("http://[", 403),
            (f"{HOST}:81", 403),
        ):
            answer = self.send("PUT", "/api/channels", [], headers={"Origin": origin})
            self.assertEqual(answer.status, status, origin)

    def test_expires(self) -> None:
        """CON-31: an hour after its last use."""
        self.log_in()
        for _ in range(3):
            self.clock.advance(3599)
            self.assertEqual(self.get("/api/session").status, 200)
        self.clock.advance(3600)
        self.assertEqual(self.get("/api/session").status, 401)


class Login(WebCase):
    def test_wrong_password(self) -> None:
        for body in ({"password": "x"}, {"user": "eve", "password": self.password}):
            answer = self.send("POST", "/api/login", body)
            self.assertEqual((answer.status, answer.code), (401, "wrong_password"))
            self.assertIsNone(answer.header("Set-Cookie"))

    def test_attempts_are_limited(self) -> None:
        """CON-30 for log-ins: ten a minute of one address, then 429, the right one too."""
        for _ in range(10):
            self.send("POST", "/api/login", {"password": "x"})
        answer = self.send("POST", "/api/login", {"password": self.password})
        self.assertEqual((answer.status, answer.code), (429, "too_many_attempts"))
        self.assertIsNotNone(answer.header("Retry-After"))
        self.clock.advance(6)
        self.log_in()

    def test_new_password(self) -> None:
        self.log_in()
        other = self.send("POST", "/api/login", {"password": self.password}).json["token"]
        body = {"old": self.password, "password": "Gehörschutz 🎧"}
        self.assertEqual(self.send("POST", "/api/password", body).status, 200)
        self.assertEqual(self.get("/api/session").status, 200)
        headers = {"Authorization": f"Bearer {other}"}
        self.assertEqual(self.get("/api/session", headers=headers).status, 401)
        self.assertEqual(self.send("POST", "/api/login", {"password": self.password}).status, 401)
        self.password = body["password"]
        self.log_in()

    def test_new_password_refused(self) -> None:
        self.log_in()
        for body, status in (
            ({"old": "wrong", "password": "long enough"}, 401),
            ({"old": self.password, "password": "short"}, 400),
        ):
            self.assertEqual(self.send("POST", "/api/password", body).status, status)


class Desk(WebCase):
    def setUp(self) -> None:
        super().setUp()
        self.log_in()
        self.heard: list[Any] = []
        self.settings.subscribe(self.heard.append)


class Channels(Desk):
    def test_round_trip(self) -> None:
        """What GET gives, PUT takes, and nothing changes by it."""
        everything = self.get("/api/channels").json
        self.assertEqual(self.send("PUT", "/api/channels", everything).json, everything)
        self.assertEqual(self.heard, [])

    def test_some_fields_of_some_channels(self) -> None:
        """STR-8, STR-10: renamed without a change of the mapping; byte-exact."""
        answer = self.send(
            "PUT", "/api/channels", [{"id": 2, "name": "Bass 🎸"}, {"id": 1, "color": "#ABCDEF"}]
        )
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.json[1]["name"], "Bass 🎸")
        self.assertEqual(answer.json[0], {**answer.json[0], "name": "CH01", "color": "#ABCDEF"})
        (change,) = self.heard
        self.assertIsInstance(change, ChannelsChanged)
        self.assertFalse(change.mapping_changed)

    def test_switched_off(self) -> None:
        self.send("PUT", "/api/channels", [{"id": 2, "enabled": False}])
        self.assertTrue(self.heard[0].mapping_changed)
        self.assertFalse(self.get("/audio-meta").json["channels"][1]["enabled"])

    def test_default_name_back(self) -> None:
        self.send("PUT", "/api/channels", [{"id": 2, "name": "x"}])
        answer = self.send("PUT", "/api/channels", [{"id": 2, "name": None}])
        self.assertEqual(answer.json[1]["name"], "CH02")

    def test_refusals_name_the_field(self) -> None:
        for body, field in (
            ([{"id": 99}], "id"),
            ([{"id": 33}], "[0].id"),
            ([{"id": 1}, {"id": 1}], "[1].id"),
            ([{"id": 1, "name": "x" * 129}], "name"),
            ([{"id": 1, "name": ""}], "name"),
            ([{"id": 1, "name": 7}], "name"),
            ([{"id": 1, "color": "red"}], "color"),
            ([{"id": 1, "color": "#12345g"}], "color"),
            ([{"id": 1, "order": 10_000}], "order"),
            ([{"id": 1, "enabled": 1}], "enabled"),
            ([{"name": "x"}], "id"),
            ({"id": 1}, "array"),
            ([{"id": 1}] * 65, "64"),
        ):
            answer = self.send("PUT", "/api/channels", body)
            self.assertEqual(answer.status, 400, body)
            self.assertIn(field, answer.message)
        self.assertEqual(self.heard, [])

    def test_half_a_surrogate_pair(self) -> None:
        for name in (b'"\\ud83d"', b'"x\\udfb8"', b'"\\ud83d\\ud83d"'):
            body = b'[{"id": 1, "name": ' + name + b"}]"
            answer = self.request("PUT", "/api/channels", body)
            self.assertEqual(answer.status, 400)
            self.assertIn("surrogate", answer.message)
        whole = self.request("PUT", "/api/channels", b'[{"id": 1, "name": "\\ud83c\\udfb8"}]')
        self.assertEqual(whole.json[0]["name"], "🎸")

    def test_disk_full(self) -> None:
        """Nothing changes, and the answer says why."""
        self.database.failure = sqlite3.OperationalError("database or disk is full")
        answer = self.send("PUT", "/api/channels", [{"id": 1, "name": "x"}])
        self.assertEqual((answer.status, answer.code), (503, "not_saved"))
        self.assertIn("disk is full", answer.message)
        self.assertEqual(self.settings.channels[0].name, "CH01")

    def test_disk_full_again_and_again(self) -> None:
        """CON-22: the sixth change is refused at once, with when it is tried again."""
        self.database.failure = sqlite3.OperationalError("database or disk is full")
        for _ in range(5):
            self.send("PUT", "/api/channels", [{"id": 1, "name": "x"}])
        self.clock.advance(18)
        answer = self.send("PUT", "/api/channels", [{"id": 1, "name": "x"}])
        self.assertEqual((answer.status, answer.code), (503, "not_saved"))
        self.assertIn("it is tried again in 42 s", answer.message)
        self.assertEqual(answer.header("Retry-After"), "42")


class AudioConfig(Desk):
    def test_default(self) -> None:
        self.assertEqual(
            self.get("/api/audio-config").json,
            {
                "sample_rate": 48000,
                "codec": "opus",
                "bitrate": 96000,
                "frame_ms": 5,
                "layout": "bundle",
                "bitrate_in_force": 96000,
                "bandwidth": "fullband",
            },
        )

    def test_partial(self) -> None:
        """STR-10: the change is told with who and why."""
        answer = self.send("PUT", "/api/audio-config", {"codec": "L24", "frame_ms": 2.5})
        self.assertEqual(answer.status, 200)
        self.assertEqual((answer.json["codec"], answer.json["frame_ms"]), ("L24", 2.5))
        self.assertEqual(answer.json["sample_rate"], 48000)
        self.assertIsNone(answer.json["bandwidth"])
        (change,) = self.heard
        self.assertIsInstance(change, AudioConfigChanged)
        self.assertEqual((change.who, change.reason), ("admin", "changed by admin"))

    def test_reason(self) -> None:
        self.send("PUT", "/api/audio-config", {"sample_rate": 24000, "reason": "old phones"})
        self.assertEqual(self.heard[0].reason, "old phones")

    def test_refusals_name_the_field(self) -> None:
        for body, field in (
            ({"sample_rate": 96000}, "sample_rate"),
            ({"sample_rate": "48000"}, "sample_rate"),
            ({"codec": "mp3"}, "codec"),
            ({"bitrate": 1}, "bitrate"),
            ({"bitrate": 10**30}, "bitrate"),
            ({"frame_ms": 3}, "frame_ms"),
            ({"frame_ms": -5}, "frame_ms"),
            ({"codec": "L24", "frame_ms": 20}, "frame_ms"),
            ({"layout": "heap"}, "layout"),
        ):
            answer = self.send("PUT", "/api/audio-config", body)
            self.assertEqual(answer.status, 400, body)
            self.assertTrue(answer.message.startswith(field), answer.message)
        self.assertEqual(self.heard, [])


class Others(Desk):
    def test_settings(self) -> None:
        """STR-43."""
        before = self.get("/api/settings").json
        self.assertEqual((before["dscp"], before["max_listeners"]), (46, 20))
        answer = self.send("PUT", "/api/settings", {"dscp": 34, "step_loss": 0.1})
        self.assertEqual(answer.json, {**before, "dscp": 34, "step_loss": 0.1})
        self.assertEqual(self.send("PUT", "/api/settings", before).json, before)

    def test_pin(self) -> None:
        """CON-31: the engineer sets and sees the listeners' PIN; others see that there is one."""
        self.assertFalse(self.get("/audio-meta").json["pin"])
        answer = self.send("PUT", "/api/settings", {"listener_pin": "7Secret7"})
        self.assertEqual(answer.json["listener_pin"], "7Secret7")
        self.assertEqual(self.get("/api/settings").json["listener_pin"], "7Secret7")
        self.assertTrue(self.get("/audio-meta").json["pin"])
        self.listeners.descriptions = {"anna": "v=0\r\n"}
        self.listeners.sessions = {"127.0.0.1": "anna"}
        token = str(self.token)
        self.auth.logout(token)
        for operation in OPERATIONS:
            path = operation.path.replace("{client_id}", "anna").replace("{name}", "index.js")
            if path == "/request-audio":
                path += "?udp_port=5004"
            answer = self.request(operation.method.upper(), path, b"{}")
            self.assertNotIn(b"7Secret7", answer.body, path)
        self.log_in()
        self.send("PUT", "/api/settings", {"listener_pin": ""})
        self.assertFalse(self.get("/audio-meta").json["pin"])
        for bad in ("12 34", "ä", "x" * 17, 1234, None):
            answer = self.send("PUT", "/api/settings", {"listener_pin": bad})
            self.assertEqual(answer.status, 400, bad)
            self.assertIn("listener_pin", answer.message)

    def test_settings_refused(self) -> None:
        for body, field in (
            ({"dscp": 64}, "dscp"),
            ({"dcsp": 1}, "dcsp"),
            ({"dscp": None}, "dscp"),
        ):
            answer = self.send("PUT", "/api/settings", body)
            self.assertEqual(answer.status, 400)
            self.assertIn(field, answer.message)

    def test_listeners(self) -> None:
        """STR-6, STR-8: who listens, how well, and who was turned away."""
        self.listeners.statuses = [listener_status("a"), listener_status("b", quality=None)]
        self.listeners.refused_count = 2
        body = self.get("/api/listeners").json
        self.assertEqual((body["count"], body["max"], body["refused"]), (2, 20, 2))
        self.assertEqual(body["listeners"][0]["quality"]["jitter_ms"], 2.5)
        self.assertEqual(body["listeners"][0]["rating"], "good")
        self.assertIsNone(body["listeners"][1]["quality"])

    def test_quality(self) -> None:
        """STR-12: as a time series, of one listener or all, the newest."""
        for second, client_id in ((1, "a"), (2, "b"), (3, "a")):
            self.clock.advance(1)
            report = QualityReport("rtcp", 0.0, loss=second / 10)
            self.settings.note_quality(client_id, "Anna", report)
        self.settings.history.flush(10)

        def losses(query: str) -> list[float]:
            return [row["loss"] for row in self.get(f"/api/quality{query}").json["quality"]]

        self.assertEqual(losses(""), [0.1, 0.2, 0.3])
        self.assertEqual(losses("?client_id=a"), [0.1, 0.3])
        self.assertEqual(losses("?since=1.5"), [0.2, 0.3])
        self.assertEqual(losses("?limit=1"), [0.3])

    def test_quality_refused(self) -> None:
        for query in ("limit=0", "limit=x", "limit=1e9", "limit=99999", "since=-1", "since=nan"):
            answer = self.get(f"/api/quality?{query}")
            self.assertEqual(answer.status, 400, query)
            self.assertIn(query.split("=")[0], answer.message)

    def test_events(self) -> None:
        """CON-40: what happened, newest first."""
        for second in (1, 2, 3):
            self.clock.advance(1)
            self.settings.note_event("device_lost", f"number {second}", {"device": "M32"})

        def messages(query: str) -> list[str]:
            return [row["message"] for row in self.get(f"/api/events{query}").json["events"]]

        self.assertEqual(messages(""), ["number 3", "number 2", "number 1"])
        self.assertEqual(messages("?limit=1"), ["number 3"])
        self.assertEqual(messages("?since=2.5"), ["number 3"])
        newest = self.get("/api/events?limit=1").json["events"][0]
        self.assertEqual(
            newest,
            {
                "at": 3.0,
                "kind": "device_lost",
                "message": "number 3",
                "details": {"device": "M32"},
            },
        )
        for query in ("limit=0", "limit=1001", "limit=x", "since=-1"):
            self.assertEqual(self.get(f"/api/events?{query}").status, 400, query)

    def test_message(self) -> None:
        """STR-8: a message to all, with fields of its own."""
        self.listeners.statuses = [listener_status()]
        answer = self.send("POST", "/api/message", {"reason": "Pause 🍺", "minutes": 15})
        self.assertEqual(answer.json, {"status": "ok", "listeners": 1})
        self.assertEqual(self.listeners.messages, [("custom_message", "Pause 🍺", {"minutes": 15})])

    def test_reconnect(self) -> None:
        """STR-31: everybody is asked to connect anew."""
        self.listeners.statuses = [listener_status()]
        body = {"reason": "after the restart of the access point", "type": "reconnect"}
        self.assertEqual(self.send("POST", "/api/message", body).status, 200)
        self.assertEqual(self.listeners.messages, [("reconnect", body["reason"], {})])

    def test_message_refused(self) -> None:
        for body in (
            {},
            {"reason": ""},
            {"reason": 5},
            {"reason": "x" * 501},
            {"reason": "x", "type": "server_shutdown"},
            {"reason": "x", "new_sample_rate": "abc"},
            {"reason": "x", "reconnect_after": 1e9},
            {"reason": "x", "big": "y" * 9000},
            {"reason": "x", "nested": {"a": []}},
            {"reason": "x", **{f"f{i}": i for i in range(21)}},
        ):
            answer = self.send("POST", "/api/message", body)
            self.assertEqual(answer.status, 400, body)
        self.assertEqual(self.listeners.messages, [])

    def test_a_server_alone(self) -> None:
        cluster = self.get("/api/cluster").json
        self.assertEqual(cluster["state"], "single")
        self.assertEqual([node["node_id"] for node in cluster["nodes"]], ["node-1"])
        self.assertEqual(self.get("/api/clock").json["state"], "unsynchronised")
