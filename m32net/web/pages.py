"""The pages people open, the files they load, the QR code and the description of it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from twisted.web.http import CACHED
from twisted.web.server import Request

from m32net.interfaces import IServerStatus, RefusedError
from m32net.web.answers import JSON, answer, set_header
from m32net.web.app import app
from m32net.web.openapi import document

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    media_type: str
    etag: bytes


def static_files() -> Mapping[str, StaticFile]:
    """All files of ``static/`` by name; nothing else can be fetched, whatever a path says."""
    files = {}
    for file in (resources.files("m32net.web") / "static").iterdir():
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[file.name] = StaticFile(content, media_type, etag.encode())
    return files


class PageRoutes:
    """Mixed into :class:`m32net.web.api.WebApi`."""

    status: IServerStatus
    qr_svg: Callable[[str], bytes]
    files: Mapping[str, StaticFile]

    @app.route("/", methods=["GET"])
    def listener_page(self, request: Request) -> bytes:
        return self._file(request, "index.html")

    @app.route("/admin", methods=["GET"])
    def admin_page(self, request: Request) -> bytes:
        return self._file(request, "admin.html")

    @app.route("/static/<name>", methods=["GET"])
    def static(self, request: Request, name: str) -> bytes:
        return self._file(request, name)

    def _file(self, request: Request, name: str) -> bytes:
        file = self.files.get(name)
        if file is None:
            raise RefusedError("not_found", "there is no such file", 404)
        set_header(request, "Cache-Control", "no-cache")
        if request.setETag(file.etag) is CACHED:  # type: ignore[no-untyped-call]
            return b""
        return answer(request, file.content, file.media_type)

    @app.route("/qr.svg", methods=["GET"])
    def qr(self, request: Request) -> bytes:
        return answer(request, self.qr_svg(self.status.page_url), _TYPES["svg"])

    @app.route("/openapi.json", methods=["GET"])
    def openapi(self, request: Request) -> bytes:
        return answer(request, document(self.status.version), JSON)
