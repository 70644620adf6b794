"""The OpenAPI document: valid, complete both ways, and true to the live answers."""

from __future__ import annotations

import json
import re
from typing import Any

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from m32net.interfaces import BlockedAddress, ConnectionStatus, Health, QualityReport
from m32net.web.app import app
from tests.m32net.web.case import WebCase
from tests.support.rooms import listener_status

BODIES: dict[tuple[str, str], Any] = {
    ("post", "/qos-metrics"): {"client_id": "anna", "metrics": {"jitter_ms": 1.5}},
    ("post", "/jitter-thresholds"): {"interpolate": 50, "drop": 100},
    ("post", "/api/login"): {"user": "admin", "password": "…"},
    ("post", "/api/password"): {"old": "…", "password": "a new password"},
    ("put", "/api/channels"): [{"id": 1, "name": "Änne", "enabled": False}],
    ("put", "/api/audio-config"): {"codec": "L16", "reason": "test"},
    ("put", "/api/settings"): {"dscp": 0},
    ("post", "/api/message"): {"reason": "Pause", "minutes": 5},
    ("post", "/api/migration"): {"host": "192.0.2.7", "port": 8080, "after_s": 5},
    ("post", "/api/peer/arrivals"): {
        "arrivals": [{"client_id": "c", "token": "t" * 43, "name": "Änne", "host": "192.0.2.9"}]
    },
    ("post", "/api/succession"): {"listen": True},
}
"""A good body for every route that takes one."""


class Document(WebCase):
    def setUp(self) -> None:
        super().setUp()
        self.document: dict[str, Any] = self.get("/openapi.json").json

    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            (method, path, operation)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        ]

    def validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        resource = Resource(contents=self.document, specification=DRAFT202012)
        registry: Any = Registry().with_resource("urn:m32net", resource)
        absolute = json.loads(
            json.dumps(schema).replace('"#/components', '"urn:m32net#/components')
        )
        return Draft202012Validator(absolute, registry=registry)

    def test_valid(self) -> None:
        OpenAPIV31SpecValidator(self.document).validate()

    def test_every_route_and_no_other(self) -> None:
        """Klein's map of routes and the document name the same methods of the same paths."""
        routes = {
            (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
            for rule in app.url_map.iter_rules()
            for method in rule.methods - {"HEAD", "OPTIONS"}
        }
        described = {(method, path) for method, path, _ in self.operations()}
        self.assertEqual(described, routes)

    def test_operation_ids(self) -> None:
        ids = [operation["operationId"] for _, _, operation in self.operations()]
        self.assertEqual(len(ids), len(set(ids)))

    def test_bodies_are_described(self) -> None:
        """Every route that takes a body is in BODIES, and its example fits its schema."""
        taking = {(m, p): op for m, p, op in self.operations() if "requestBody" in op}
        self.assertEqual(set(taking), set(BODIES))
        for key, operation in taking.items():
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self.validator(schema).validate(BODIES[key])

    def live(self, method: str, path: str) -> Any:
        address = path.replace("{client_id}", "anna").replace("{name}", "style.css")
        address = address.replace("{address}", "2001:db8::%2F64")
        if path == "/request-audio":
            address += "?udp_port=5004"
        body = BODIES.get((method, path))
        if body is None:
            return self.request(method.upper(), address)
        text = json.dumps(body).replace('"\\u2026"', json.dumps(self.password))
        return self.request(method.upper(), address, text.encode())

    def assert_described(self, operation: dict[str, Any], answer: Any) -> None:
        response = operation["responses"][str(answer.status)]
        media_type = str(answer.header("Content-Type")).split(";")[0]
        content = response["content"]
        schema = content.get(media_type) or content["*/*"]
        if media_type == "application/json":
            self.validator(schema["schema"]).validate(answer.json)

    def test_live_answers(self) -> None:
        """Every route, with data of every kind, answers as described."""
        self.listeners.statuses = [
            listener_status("anna"),
            listener_status("ben", quality=None, codec=None, frame_ms=None, udp_port=None),
        ]
        self.listeners.sessions = {"127.0.0.1": "anna"}
        self.listeners.descriptions = {"anna": "v=0\r\n"}
        self.connections.open = [
            ConnectionStatus("192.0.2.7", 40001, True, 9.5, 0.5, 100, 2000, 1.5, 0.01),
            ConnectionStatus("192.0.2.8", 40002, False, 9.5, 0.5, 100, 2000, None, None),
        ]
        shut_out = BlockedAddress("2001:db8::/64", "too many connections", 3000.0)
        self.connections.shut_out = {shut_out.address: shut_out}
        self.status.rooms = {"audio": Health("degraded", ("why",), {"n": 1})}
        self.clock.advance(1)
        self.settings.note_quality("anna", "Anna", QualityReport("rtcp", 0.0, loss=0.1))
        self.settings.history.flush(1)
        self.log_in()
        operations = self.operations()
        # Logging out last: the others need the session.  Lists before what empties them.
        operations.sort(key=lambda one: (one[1] == "/api/logout", one[0] == "delete"))
        for method, path, operation in operations:
            self.migration.target = None
            answer = self.live(method, path)
            self.assertEqual(answer.status, 200, (method, path, answer.body))
            self.assert_described(operation, answer)

    def test_moved(self) -> None:
        """CON-51: what is sent to another server is described so, and nothing else is sent."""
        self.migration.target = "192.0.2.9:8080"
        for method, path, operation in self.operations():
            if method == "get":
                answer = self.raw("GET", path.replace("{", "").replace("}", ""))
                self.assertEqual(answer.status == 307, "307" in operation["responses"], path)
                self.assert_described(operation, answer)

    def test_live_refusals(self) -> None:
        """Without a session, with a bad body, unhealthy: as described, status and form."""
        self.status.rooms = {"audio": Health("unhealthy")}
        for _ in range(2):
            for method, path, operation in self.operations():
                answer = self.request(method.upper(), path.replace("{", "").replace("}", ""), b"{")
                if answer.status != 200:
                    self.assertIn(str(answer.status), operation["responses"], (method, path))
                self.assert_described(operation, answer)
            self.log_in()
