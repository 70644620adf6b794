"""CON-40: what is handed out for Prometheus and Grafana fits what a live server shows."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from m32net.ops.catalogue import HELP
from tests.support.processes import (
    HOST,
    ROOT,
    Child,
    ListenProcess,
    ServerProcess,
    missing,
    wait_for,
)

FOLDER = ROOT / "docs" / "monitoring"
DASHBOARD = FOLDER / "grafana-dashboard.json"
NAME = re.compile(r"\b(?:m32net|process)_\w+")
SILENT = re.compile(r"> 0|== 1|_control_")
"""Queries without an answer while all is well, or before the first ping of a session."""
HURRIED = {
    "M32netCaptureOverruns",
    "M32netListenerPoor",
    "M32netNoAudioSent",
    "M32netPacketsDropped",
    "M32netUnhealthy",
}
"""Alerts that a machine with other things to do may rightly give."""


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def expressions() -> list[str]:
    """Every query of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    notes = [one["expr"] for one in dashboard["annotations"]["list"]]
    variables = [one.get("definition", "") for one in dashboard["templating"]["list"]]
    return [
        *(target["expr"] for panel in panels() for target in panel.get("targets", ())),
        *notes,
        *variables,
    ]


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text(encoding="utf-8"))


def promtool(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments],
        input=given,
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )


class Rules(unittest.TestCase):
    skip = missing("promtool")

    def test_rules_are_valid(self) -> None:
        """CON-40: `promtool check rules` has no complaint."""
        done = promtool("check", "rules", "alerts.yml")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"{len(alerts())} rules found", done.stdout)

    def test_rules_fire_as_they_should(self) -> None:
        """CON-40: `promtool test rules`: each alert for its fault, none on a good evening."""
        done = promtool("test", "rules", "alerts-test.yml")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_rule_is_tried(self) -> None:
        """CON-40: each alert is seen to fire, and to be silent, in alerts-test.yml."""
        text = (FOLDER / "alerts-test.yml").read_text(encoding="utf-8")
        fires = re.findall(r"alertname: (\w+)\n +exp_alerts:", text)
        silent = re.findall(r"eval_time: 20m, alertname: (\w+)\}", text)
        self.assertEqual(set(alerts()) - set(fires), set())
        self.assertEqual(set(alerts()), set(silent))


class DashboardFile(unittest.SynchronousTestCase):
    """The shape that Grafana 10 and later import."""

    def test_shape(self) -> None:
        """CON-40: data source and server are variables; every panel explains itself."""
        dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        self.assertGreaterEqual(dashboard["schemaVersion"], 38)
        names = [one["name"] for one in dashboard["templating"]["list"]]
        self.assertEqual(names, ["datasource", "instance", "listener"])
        rows = [one["title"] for one in panels() if one["type"] == "row"]
        self.assertEqual(rows, ["Audio", "Listeners", "Connections", "Machine"])
        for panel in panels():
            if panel["type"] == "row":
                continue
            self.assertTrue(panel["title"] and panel["description"], panel["id"])
            self.assertEqual(panel["datasource"]["uid"], "${datasource}", panel["title"])
            for target in panel["targets"]:
                self.assertIn("$instance", target["expr"], panel["title"])
        self.assertEqual(len({one["id"] for one in panels()}), len(panels()))

    def test_layout(self) -> None:
        """CON-40: panels fill the 24 columns without covering each other."""
        taken: set[tuple[int, int]] = set()
        for panel in panels():
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            self.assertEqual(cells & taken, set(), panel["title"])
            taken |= cells
        height = max(y for _, y in taken) + 1
        self.assertEqual(len(taken), 24 * height, "there are holes")


class Live(unittest.TestCase):
    """A server with a listener, scraped."""

    timeout = 180

    def setUp(self) -> None:
        self.server = ServerProcess("--source=test", "--https=tcp:0")
        self.addCleanup(self.server.close)
        listener = ListenProcess(self.server.url, "--duration=150")
        self.addCleanup(listener.close)
        wait_for(lambda: "m32net_listener_loss_ratio{" in self.scrape(), "it is measured", 60)

    def scrape(self) -> str:
        text = self.server.get("/metrics")
        assert isinstance(text, str)
        return text

    def test_no_complaint(self) -> None:
        """CON-40: `promtool check metrics` finds nothing to say."""
        if missing("promtool"):
            raise unittest.SkipTest("not installed: promtool")
        done = promtool("check", "metrics", given=self.scrape())
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_named_in_the_documents(self) -> None:
        """CON-40: every metric that the alerts and the dashboard use is there, and explained."""
        text = self.scrape()
        families = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
        known = {name.removesuffix("_bucket") for name in families}
        sources = [*expressions(), (FOLDER / "alerts.yml").read_text(encoding="utf-8")]
        used = {name.removesuffix("_bucket") for one in sources for name in NAME.findall(one)}
        self.assertEqual(used - known, set())
        vague = {
            name
            for name, words in families.items()
            if name.startswith("m32net_")
            and words == name.removeprefix("m32net_").replace("_", " ").capitalize() + "."
            and name.removeprefix("m32net_") not in HELP
        }
        self.assertEqual(vague, set(), "not explained in m32net/ops/catalogue.py")

    def test_through_prometheus(self) -> None:
        """CON-40: every query of the dashboard is answered by a real Prometheus, most with data."""
        if missing("prometheus"):
            raise unittest.SkipTest("not installed: prometheus")
        prometheus = Prometheus(self.server.port)
        self.addCleanup(prometheus.close)
        prometheus.wait_for_samples()
        empty = []
        for expression in expressions():
            if not expression or expression.startswith("label_values"):
                continue
            answer = prometheus.query(
                expression.replace("$instance", f"{HOST}:{self.server.port}")
                .replace("$listener", ".*")
                .replace("$__rate_interval", "10s")
            )
            self.assertEqual(answer["status"], "success", expression)
            if not answer["data"]["result"] and not SILENT.search(expression):
                empty.append(expression)
        self.assertEqual(empty, [])
        self.assertEqual(prometheus.firing() - HURRIED, set())


class Prometheus(Child):
    """A Prometheus that scrapes one server every second and evaluates the alerts."""

    def __init__(self, target: int) -> None:
        self.directory = tempfile.mkdtemp(prefix="m32net-prometheus-")
        with socket.create_server((HOST, 0)) as free:
            self.port = free.getsockname()[1]
        config = Path(self.directory) / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{FOLDER / 'alerts.yml'}]\n"
            "scrape_configs:\n"
            f"  - {{job_name: m32net, static_configs: [{{targets: ['{HOST}:{target}']}}]}}\n"
        )
        super().__init__(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={self.directory}/data",
                f"--web.listen-address={HOST}:{self.port}",
            ]
        )

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{HOST}:{self.port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def query(self, expression: str) -> Any:
        return self.get("/api/v1/query", query=expression)

    def firing(self) -> set[str]:
        found = self.get("/api/v1/alerts")["data"]["alerts"]
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}

    def wait_for_samples(self) -> None:
        """Until a rate over 10 s has something to go by."""
        wait_for(partial(self._answers, "up == 1"), "Prometheus scrapes", 60)
        scraped = "count_over_time(m32net_uptime_seconds[60s]) >= 6"
        wait_for(partial(self._answers, scraped), "it scraped six times", 60)

    def _answers(self, expression: str) -> bool:
        assert self.running(), self.text()
        try:
            return bool(self.query(expression)["data"]["result"])
        except OSError:
            return False

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.directory, ignore_errors=True)
