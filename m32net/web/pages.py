"""The pages people open, the files they load, the QR code and the description of it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from twisted.web.http import CACHED
from twisted.web.server import Request

from m32net.interfaces import IServerStatus, RefusedError
from m32net.web.answers import JSON, answer, set_header, takes_gzip
from m32net.web.app import app
from m32net.web.openapi import document
from protocols.compression import gzip

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """What does not change while the server runs, compressed once.

    :ivar packed: its gzip form; None where that does not pay.
    """

    content: bytes
    packed: bytes | None
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> StaticFile:
        etag = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, gzip(content), media_type, etag)

    def answer(self, request: Request) -> bytes:
        """The form the client takes, or nothing but "not modified".

        The two forms have tags of their own, as they are not the same bytes (RFC 9110 section
        8.8.3.3).
        """
        set_header(request, "Cache-Control", "no-cache")
        etag = self.etag
        packed = self.packed if takes_gzip(request) else None
        if self.packed is not None:
            set_header(request, "Vary", "Accept-Encoding")
        if packed is not None:
            etag += "-gzip"
        if request.setETag(f'"{etag}"'.encode()) is CACHED:  # type: ignore[no-untyped-call]
            return b""
        if packed is None:
            return answer(request, self.content, self.media_type, pack=None)
        set_header(request, "Content-Encoding", "gzip")
        return answer(request, packed, self.media_type, pack=None)


@cache
def description(version: str) -> StaticFile:
    """``/openapi.json``."""
    return StaticFile.of(document(version), JSON)


def static_files() -> Mapping[str, StaticFile]:
    """All files of ``static/`` by name; nothing else can be fetched, whatever a path says."""
    files = {}
    for file in (resources.files("m32net.web") / "static").iterdir():
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            files[file.name] = StaticFile.of(file.read_bytes(), media_type)
    return files


class PageRoutes:
    """Mixed into :class:`m32net.web.api.WebApi`."""

    status: IServerStatus
    qr_svg: Callable[[str], bytes]
    files: Mapping[str, StaticFile]

    def moved_to(self, request: Request) -> str | None:
        """URL of the server newcomers are sent to; None: they may stay here."""
        raise NotImplementedError

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
        return file.answer(request)

    @app.route("/qr.svg", methods=["GET"])
    def qr(self, request: Request) -> bytes:
        target = self.moved_to(request)
        url = self.status.page_url if target is None else f"{target}/"
        return answer(request, self.qr_svg(url), _TYPES["svg"])

    @app.route("/openapi.json", methods=["GET"])
    def openapi(self, request: Request) -> bytes:
        return description(self.status.version).answer(request)
