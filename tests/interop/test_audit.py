"""pip-audit: whether a weakness is known of any version the project is tested with.

It asks a service on the Internet, which is asked about one package first; where that brings
no answer, nothing more is asked and the test is skipped.
"""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from tests.support.processes import ROOT

PROBE_S = 30.0
ALL_S = 180.0


def audited(requirements: Path, timeout_s: float) -> list[dict[str, Any]]:
    """What pip-audit says of every line of a file of pinned versions.

    :raises SkipTest: the service can't be asked.
    """
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--timeout=5"]
    command += ["--progress-spinner=off", "--format=json", "-r", str(requirements)]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise unittest.SkipTest(f"its service did not answer in {timeout_s:g} s") from None
    try:
        found: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except ValueError:
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        raise unittest.SkipTest(f"its service can't be reached: {last[:200]}") from None
    return found


class PipAudit(unittest.SynchronousTestCase):
    if find_spec("pip_audit") is None:
        skip = "pip-audit is not installed"

    def test_no_known_weakness(self) -> None:
        """CON-32: none is known of the versions that were tested together."""
        pinned = ROOT / "constraints.txt"
        lines = pinned.read_text(encoding="utf-8").splitlines()
        probe = Path(self.mktemp())
        probe.write_text(next(one for one in lines if one.startswith("Twisted==")) + "\n")
        for one in audited(probe, PROBE_S):
            if "skip_reason" in one:
                raise unittest.SkipTest(f"its service knows nothing here: {one['skip_reason']}")
        found = audited(pinned, ALL_S)
        self.assertEqual(len(found), sum("==" in one for one in lines))
        self.assertEqual([one for one in found if "skip_reason" in one], [])
        weak = {one["name"]: [v["id"] for v in one["vulns"]] for one in found if one["vulns"]}
        self.assertEqual(weak, {})


class Pinned(unittest.SynchronousTestCase):
    def test_make_audit_asks_about_all_that_is_installed(self) -> None:
        """CON-32: what ``setup.cfg`` names is in ``constraints.txt``, so that it is asked about."""
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        named = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
        names = {
            re.split(r"[\s\[<>=]", line, maxsplit=1)[0].lower().replace("_", "-")
            for block in named
            for line in block.split("\n")
            if line.strip()
        }
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pinned = {one.split("==")[0].lower().replace("_", "-") for one in lines if "==" in one}
        self.assertEqual(names - pinned, set())
