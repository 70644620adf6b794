"""The documentation is current where it is generated, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial import unittest

from tests.support import diagrams

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


class DocumentsTest(unittest.TestCase):
    def test_generated_pages_are_current(self) -> None:
        for name, text in diagrams.pages().items():
            shown = (diagrams.FOLDER / name).read_text(encoding="utf-8")
            self.assertEqual(shown, text, f"run `make docs` ({name})")

    def test_links_lead_somewhere(self) -> None:
        pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        dead = [
            f"{page.relative_to(ROOT)}: {target}"
            for page in pages
            for target in LINK.findall(page.read_text(encoding="utf-8"))
            if not (page.parent / target).exists()
        ]
        self.assertEqual(dead, [])
