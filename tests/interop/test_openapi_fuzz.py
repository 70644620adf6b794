"""Schemathesis against a real server: no route of ``/openapi.json`` may fail, whatever comes.

It sends what the description allows, and what it forbids, to every route: boundaries first, then
random data.  A 500, a status the description does not name, an answer that is not of the form it
gives, wrong data that is accepted and a method that is not there but answers are failures.

Not asked for is that right data is always accepted: some rules concern two fields, or what the
server is set to (``interpolate < drop``, channels this source has), and no schema can say them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from tests.support.processes import SOAK, ServerProcess

CHECKS = (
    # Any status that is not named, so every 5xx but the 503s that are.
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
EXCLUDED_WITH_LOGIN = {
    "post_api_logout": "ends the very session this uses",
    "post_api_migration": "asks random hosts, which are not on this machine",
}
"""Left out with a session; without one they are tried like the others.

Contained rather than left out: ``/api/password`` (nobody guesses the old one, and guesses are
limited), ``/api/settings`` with ``max_listeners`` and all (nobody listens, the state directory is
thrown away), ``/api/peer/arrivals`` (a bounded table) and ``/api/succession`` (this server follows
no other).
"""
EXAMPLES = 200 if SOAK else 6
"""Random requests for every route, after the boundaries: some 1,000 in all, in some 10 s where
nothing else runs.  How many there are does not depend on how fast that is."""
MAX_S = 1200.0 if SOAK else 150.0
"""Of one run, on a machine that is busy with other things; there are two."""


class OpenApiFuzz(unittest.TestCase):
    timeout = 2 * MAX_S  # type: ignore[assignment]
    if find_spec("schemathesis") is None:
        skip = "schemathesis is not installed"

    def setUp(self) -> None:
        self.server = ServerProcess("--source=test", "--https=tcp:0")
        self.addCleanup(self.server.close)
        self.token = self.server.login()
        self.seed = int(os.environ.get("M32NET_SEED") or random.randrange(2**32))
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def fuzz(self, *options: str) -> dict[str, Any]:
        """One run; gives its report."""
        report = self.directory.resolve() / "report.json"
        description = self.directory.resolve() / "openapi.json"
        description.write_text(json.dumps(self.server.get("/openapi.json")), encoding="utf-8")
        print(f"\nseed: M32NET_SEED={self.seed}")
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run"),
                # Not its address: then it would leave out that route.
                *(str(description), "--url", self.server.url),
                *("--phases", "examples,coverage,fuzzing"),
                *("--checks", ",".join(CHECKS)),
                *("--max-examples", str(EXAMPLES)),
                *("--seed", str(self.seed)),
                *("--request-timeout", "10", "--continue-on-failure", "--no-shrink"),
                *("--report", "json", "--report-json-path", str(report), "--no-color"),
                *options,
            ],
            # It keeps a database of examples in its working directory.
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=MAX_S,
            check=False,
        )
        self.assertTrue(report.exists(), ran.stdout[-4000:] + ran.stderr[-4000:])
        result: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        print(f"{result['test_cases']['generated']} requests in {result['running_time']:.0f} s")
        self.assertEqual(result["errors"], [], f"seed {self.seed}")
        found = [json.dumps(one)[:2000] for one in result["failures"]]
        self.assertEqual(found, [], f"seed {self.seed}:\n" + "\n".join(found))
        return result

    def assert_unharmed(self) -> None:
        """It runs, knows its session, and had nothing to say of a failure of its own."""
        self.assertTrue(self.server.running(), self.server.text())
        self.assertEqual(self.server.call("GET", "/api/session", token=self.token)[0], 200)
        self.assertIn(self.server.call("GET", "/health")[0], (200, 503))
        self.assertNotIn("Traceback", self.server.text())

    def assert_complete(self, result: dict[str, Any], excluded: int) -> None:
        operations = result["operations"]
        described = self.server.get("/openapi.json")["paths"].values()
        self.assertEqual(operations["total"], sum(len(methods) for methods in described))
        self.assertEqual(operations["tested"], operations["total"] - excluded)
        self.assertGreater(result["test_cases"]["generated"], 10 * operations["tested"])

    def test_with_a_session(self) -> None:
        """CON-2, CON-31: whatever the engineer's browser sends, no 5xx and nothing undescribed."""
        options = [f"--header=Authorization: Bearer {self.token}"]
        options += [f"--exclude-operation-id={one}" for one in EXCLUDED_WITH_LOGIN]
        result = self.fuzz(*options)
        self.assert_unharmed()
        self.assert_complete(result, len(EXCLUDED_WITH_LOGIN))

    def test_without_a_session(self) -> None:
        """CON-2, CON-31: whatever anybody sends, no 5xx, nothing undescribed, nothing changed."""
        before = [self.server.call("GET", path, token=self.token) for path in _SETTINGS]
        result = self.fuzz()
        self.assert_unharmed()
        self.assert_complete(result, 0)
        after = [self.server.call("GET", path, token=self.token) for path in _SETTINGS]
        self.assertEqual(after, before)


_SETTINGS = ("/api/settings", "/api/audio-config", "/api/channels", "/jitter-thresholds")
