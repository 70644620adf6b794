"""The rules of the house, enforced on the syntax trees (docs/architecture.md, "Layers")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial import unittest

ROOT = Path(__file__).resolve().parent.parent
SHELLS = {
    "protocol.py",
    "datagram.py",
    "base_protocol.py",
    "client_protocol.py",
    "server_protocol.py",
}
IMPURE = {"twisted", "autobahn", "socket", "time", "threading", "random"}
VOCABULARY = {
    "m32net.config",
    "m32net.interfaces",
    "m32net.log",
    "m32net.settings",
    "m32net.audio.frame",
    "m32net.streaming.profile",
}
COMPOSERS = {"m32net/tap.py", "m32net/server.py", "m32net/cli.py"}


def modules(*tops: str) -> Iterator[tuple[str, ast.Module]]:
    for top in tops:
        for path in sorted((ROOT / top).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module (``from a import b`` counts as ``a`` and ``a.b``), with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level, node.lineno
                continue
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def typing_only(tree: ast.Module) -> set[int]:
    """Lines inside ``if TYPE_CHECKING:`` blocks."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def wire_faults(name: str, tree: ast.Module) -> list[str]:
    found = []
    pure = Path(name).name not in SHELLS
    for module, line in imports(tree):
        top = module.split(".")[0]
        if top == "m32net":
            found.append(f"{name}:{line} imports {module}: the wire must not know the application")
        if pure and top in IMPURE:
            found.append(f"{name}:{line} imports {module}: a core does no I/O and has no clock")
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "m32net" and len(parts) > 2 else None


def room_faults(name: str, tree: ast.Module) -> list[str]:
    if name in COMPOSERS or name.count("/") < 2:
        return []
    own = name.split("/")[1]
    allowed = typing_only(tree)
    found = []
    for module, line in imports(tree):
        room = room_of(module)
        known = any(module == word or module.startswith(word + ".") for word in VOCABULARY)
        is_package = module.count(".") == 1  # "from m32net import x" style names
        if room is None or room == own or known or is_package or line in allowed:
            continue
        if not (ROOT / "m32net" / room).is_dir():
            continue
        found.append(f"{name}:{line} imports {module}: rooms meet in m32net.interfaces")
    return found


def reactor_faults(name: str, tree: ast.Module) -> list[str]:
    inside = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return [
        f"{name}:{line} imports the reactor when loaded"
        for module, line in imports(tree)
        if module == "twisted.internet.reactor" and line not in inside
    ]


class LayersTest(unittest.TestCase):
    """Layers and rooms as docs/architecture.md has them."""

    def test_wire_knows_no_application_and_cores_do_no_io(self) -> None:
        found = [f for name, tree in modules("protocols") for f in wire_faults(name, tree)]
        self.assertEqual(found, [])

    def test_threads_only_in_the_audio_room(self) -> None:
        found = [
            f"{name}:{line}"
            for name, tree in modules("m32net")
            for module, line in imports(tree)
            if module.split(".")[0] in {"threading", "_thread"}
            and not name.startswith("m32net/audio/")
        ]
        self.assertEqual(found, [])

    def test_no_module_level_reactor(self) -> None:
        found = [
            fault
            for name, tree in modules("m32net", "protocols")
            for fault in reactor_faults(name, tree)
        ]
        self.assertEqual(found, [])

    def test_rooms_do_not_import_each_other(self) -> None:
        found = [f for name, tree in modules("m32net") for f in room_faults(name, tree)]
        self.assertEqual(found, [])

    def test_names_say_something(self) -> None:
        empty = ("Manager", "Handler", "Processor", "Utils", "Helper")
        found = [
            f"{name}:{node.lineno} {node.name}"
            for name, tree in modules("m32net", "protocols")
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name.endswith(empty)
        ]
        self.assertEqual(found, [])

    def test_plugin_directories_are_no_packages(self) -> None:
        self.assertFalse((ROOT / "twisted" / "__init__.py").exists())
        self.assertFalse((ROOT / "twisted" / "plugins" / "__init__.py").exists())


class RulesBiteTest(unittest.TestCase):
    """The rules find what they are for: each is shown on a small offender."""

    def test_wire_rule(self) -> None:
        tree = ast.parse("import m32net.config\nfrom twisted.internet import defer\nimport time")
        faults = wire_faults("protocols/rtp/packet.py", tree)
        self.assertEqual({fault.split()[0][-2:] for fault in faults}, {":1", ":2", ":3"})
        self.assertEqual(wire_faults("protocols/rtp/protocol.py", ast.parse("import time")), [])

    def test_room_rule(self) -> None:
        tree = ast.parse("from m32net.store.service import SettingsService")
        self.assertTrue(room_faults("m32net/web/api.py", tree))
        self.assertFalse(room_faults("m32net/store/api.py", tree))
        vocabulary = ast.parse("from m32net.streaming.profile import Profile")
        self.assertFalse(room_faults("m32net/audio/engine.py", vocabulary))

    def test_reactor_rule(self) -> None:
        tree = ast.parse("from twisted.internet import reactor")
        self.assertTrue(reactor_faults("m32net/tap.py", tree))
        inside = ast.parse("def f():\n    from twisted.internet import reactor")
        self.assertEqual(reactor_faults("m32net/tap.py", inside), [])
