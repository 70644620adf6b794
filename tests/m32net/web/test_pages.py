"""The pages' own files: they keep to the content security policy, and find what they look for."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from twisted.trial import unittest

STATIC = Path(__file__).resolve().parents[3] / "m32net" / "web" / "static"


class Page(HTMLParser):
    """The ids of a page, and what the policy forbids in it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.faults: list[str] = []
        self.feed((STATIC / name).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []  # type: ignore[list-item]
        inline = [name for name in given if name.startswith("on") or name == "style"]
        if inline or tag == "style" or (tag == "script" and "src" not in given):
            self.faults.append(f"<{tag} {inline}>")
        for name in ("src", "href"):
            if not (given.get(name) or "/").startswith("/"):
                self.faults.append(f"<{tag} {name}={given[name]}>")


class PagesTest(unittest.SynchronousTestCase):
    def test_nothing_inline_nothing_foreign(self) -> None:
        """CON-31: no script or style in the pages, nothing from another host."""
        for name in ("index.html", "admin.html"):
            self.assertEqual(Page(name).faults, [], name)

    def test_scripts_write_no_markup(self) -> None:
        """CON-31: what a listener calls itself is text on the page, never markup."""
        for path in STATIC.glob("*.js"):
            text = path.read_text(encoding="utf-8")
            self.assertNotRegex(
                text, r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("
            )

    def test_ids(self) -> None:
        """Every id a script looks up is in its page, once."""
        for page, scripts in (
            ("index.html", ("index.js",)),
            ("admin.html", ("admin.js", "admin-network.js")),
        ):
            ids = Page(page).ids
            self.assertEqual(len(ids), len(set(ids)), page)
            for script in scripts:
                text = (STATIC / script).read_text(encoding="utf-8")
                self.assertLessEqual(set(re.findall(r'byId\("([^"]+)"\)', text)), set(ids), script)

    def test_imports_exist(self) -> None:
        """What a script imports is exported by a file that is there."""
        for path in STATIC.glob("*.js"):
            text = path.read_text(encoding="utf-8")
            for names, file in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', text):
                other = (STATIC / file).read_text(encoding="utf-8")
                for name in names.split(","):
                    if name.strip():
                        self.assertRegex(
                            other, rf"export (async function|function|class|const) {name.strip()}\b"
                        )
