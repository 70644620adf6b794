"""What every route needs: reading a JSON body with refusals a person understands, and answering.

Errors are ``{"error": {"code", "message"}}`` with a fitting status, whatever went wrong.  Long
answers are compressed where the client takes it and it pays (CON-20); none of these holds a secret
beside what somebody else chose, whose length could then be guessed at (BREACH).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from m32net.interfaces import RefusedError
from m32net.settings import NotSavedError
from m32net.web.bodies import ErrorBody, ErrorDetail
from protocols.addresses import plain
from protocols.compression import InflateError, gzip, inflate, worth_trying
from protocols.control.origin import origin_allowed

T = TypeVar("T")

MAX_BODY: Final = 1024 * 1024
"""CON-2, in bytes."""
JSON: Final = "application/json"
COOKIE: Final = "m32net_session"
SECURE_COOKIE: Final = "__Host-m32net_session"
"""The name under TLS: with this prefix browsers let no other host and no plain page set it."""
INLINE_BYTES: Final = 64 * 1024
"""A body up to this size is compressed where it is made, in 1 to 2 ms; audio must not wait more."""
INLINE_ROWS: Final = 500
"""Rows of a table that are put into JSON in one go, in some 0.3 ms."""

_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_encoding",
    500: "internal_error",
    503: "unavailable",
}
_HALF_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def set_header(request: Request, name: str, value: str) -> None:
    request.responseHeaders.setRawHeaders(name, [value])


def header(request: Request, name: bytes) -> str | None:
    """The last value of a header, whatever bytes it holds; ``getHeader`` fails at some."""
    values = request.requestHeaders.getRawHeaders(name)
    return values[-1].decode("utf-8", "replace") if values else None


def is_secure(request: Request) -> bool:
    """Whether it came over TLS."""
    return bool(request.isSecure())  # type: ignore[no-untyped-call]


def takes_gzip(request: Request) -> bool:
    """Whether the client wants gzip (RFC 9110 section 12.5.3); ``*`` counts, ``q=0`` refuses."""
    wanted = None
    for coding in (header(request, b"Accept-Encoding") or "").lower().split(","):
        name, *parameters = (part.strip() for part in coding.split(";"))
        if name in {"gzip", "x-gzip"} or (name == "*" and wanted is None):
            wanted = not any(re.fullmatch(r"q=0(\.0*)?", one) for one in parameters)
    return bool(wanted)


def answer(
    request: Request,
    body: bytes,
    media_type: str,
    status: int = 200,
    *,
    pack: Callable[[bytes], bytes | None] | None = gzip,
) -> bytes:
    """Set what describes ``body`` and give it back, for a route to return.

    :param pack: compresses the body; None if that was tried already, or is not to be.
    """
    request.setResponseCode(status)
    set_header(request, "Content-Type", media_type)
    if worth_trying(len(body)):
        set_header(request, "Vary", "Accept-Encoding")
        if pack is not None and len(body) <= INLINE_BYTES and takes_gzip(request):
            packed = pack(body)
            if packed is not None:
                set_header(request, "Content-Encoding", "gzip")
                body = packed
    set_header(request, "Content-Length", str(len(body)))
    return body


def json_answer(request: Request, body: object, status: int = 200) -> bytes:
    """``body`` as JSON; a float that is not finite becomes null."""
    return answer(request, as_json(body), JSON, status)


def as_json(body: object) -> bytes:
    return msgspec.json.encode(body, enc_hook=str)


def rows_as_json(name: str, rows: Sequence[object]) -> bytes:
    """``{name: rows}``, some rows at a time: between them other threads get their turn."""
    parts = [
        as_json(rows[start : start + INLINE_ROWS])[1:-1]
        for start in range(0, len(rows), INLINE_ROWS)
    ]
    return b'{"%b":[%b]}' % (name.encode(), b",".join(parts))


class LongAnswers:
    """Answers of any length: those over :data:`INLINE_BYTES` are compressed in a thread.

    One at a time, so that this takes one core at most; meanwhile others are sent as they are.

    :param in_thread: runs a blocking callable elsewhere and gives a Deferred of its result.
    """

    def __init__(self, in_thread: Callable[..., Deferred[Any]]) -> None:
        self._in_thread = in_thread
        self._one = DeferredSemaphore(1)

    async def rows(self, request: Request, name: str, rows: Sequence[object]) -> bytes:
        """``{name: rows}`` as JSON; more than :data:`INLINE_ROWS` are written in a thread."""
        if len(rows) > INLINE_ROWS:
            body = await self._one.run(self._in_thread, rows_as_json, name, rows)
        else:
            body = rows_as_json(name, rows)
        return await self.answer(request, body, JSON)

    async def answer(self, request: Request, body: bytes, media_type: str) -> bytes:
        """As the function of this name."""
        packed = None
        if len(body) > INLINE_BYTES and takes_gzip(request) and self._one.tokens:
            packed = await self._one.run(self._in_thread, gzip, body)
        if packed is None:
            return answer(request, body, media_type)
        set_header(request, "Vary", "Accept-Encoding")
        set_header(request, "Content-Encoding", "gzip")
        return answer(request, packed, media_type, pack=None)


def error_answer(request: Request, status: int, code: str, message: str) -> bytes:
    return json_answer(request, ErrorBody(ErrorDetail(code, message)), status)


def refusal_answer(request: Request, error: RefusedError) -> bytes:
    if error.status == 415:
        set_header(request, "Accept-Encoding", "gzip")  # RFC 7694
    elif error.status == 401:
        set_header(request, "WWW-Authenticate", "Bearer")
    elif error.status in {429, 503}:
        retry_in_s = error.retry_in_s if isinstance(error, NotSavedError) else None
        set_header(request, "Retry-After", str(math.ceil(retry_in_s or 6)))
    return error_answer(request, error.status, error.code, error.message)


def http_error_answer(request: Request, error: HTTPException) -> bytes:
    """What the routing refuses: 404, 405, and redirects, which are no routes of ours."""
    status = error.code or 500
    if status < 400:
        status = 404
    methods = getattr(error, "valid_methods", None)
    if status == 405 and methods:
        allowed = ", ".join(sorted(methods))
        set_header(request, "Allow", allowed)
        message = f"{_shown(request.method)} is not possible here, only {allowed}"
    elif status == 404:
        message = f"there is nothing at {_shown(request.path)}"
    else:
        message = error.name
    return error_answer(request, status, _CODES.get(status, "bad_request"), message)


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")[:80]


def json_body(request: Request, form: type[T]) -> T:
    """The body as a ``form``, a msgspec type.

    :raises RefusedError: 400 that names the field, 403 for another site's page, 413, 415.
    """
    check_origin(request)
    data = _body(request)
    try:
        data.decode("utf-8")
        return msgspec.json.decode(data, type=form)
    except UnicodeDecodeError:
        raise RefusedError("bad_request", "the body is not UTF-8") from None
    except RecursionError:
        raise RefusedError("bad_request", "the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise RefusedError("invalid_value", _field_first(str(error))) from None
    except msgspec.DecodeError as error:
        raise RefusedError("bad_request", _not_json(data, str(error))) from None


def _body(request: Request) -> bytes:
    """The body, inflated if it came compressed, in either form of :data:`MAX_BODY` at most."""
    assert request.content is not None
    data: bytes = request.content.read()
    if len(data) > MAX_BODY:
        raise RefusedError("too_large", f"the body has more than {MAX_BODY} bytes", 413)
    coding = (header(request, b"Content-Encoding") or "identity").strip().lower()
    if coding in {"", "identity"}:
        return data
    if coding not in {"gzip", "x-gzip"}:
        raise RefusedError("unsupported_encoding", f"{coding[:40]!r} is no encoding but gzip", 415)
    try:
        return inflate(data, MAX_BODY, form="gzip")
    except InflateError as error:
        if error.code == "too_large":
            raise RefusedError(
                "too_large", f"the body has more than {MAX_BODY} bytes", 413
            ) from None
        raise RefusedError("bad_request", f"the body is not gzip: {error}", 400) from None


def _field_first(text: str) -> str:
    """``reason - at `$.a[...].b` `` as ``a[...].b: reason``."""
    reason, found, path = text.partition(" - at `$")
    field = path.rstrip("`").removeprefix(".")
    return f"{field}: {reason}" if found and field else reason


def _not_json(data: bytes, reason: str) -> str:
    if not data.strip():
        return "the body is empty; it must be JSON"
    if _HALF_SURROGATE.search(data) and "truncated" in reason:
        return "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    return f"the body is not JSON: {reason}"


def check_origin(request: Request) -> None:
    """A page of another site must not use the browser's cookie, or address, to change anything.

    Browsers name the page's origin with every request that is no GET, and newer ones say of each
    whether it comes from a foreign page; programs say neither.

    :raises RefusedError: 403.
    """
    origin = header(request, b"Origin")
    host = header(request, b"Host") or ""
    if _repeated(request, b"Origin") or _repeated(request, b"Host"):
        same = False  # whom the one counts for that is in front of us is not known
    elif origin:
        same = origin_allowed(origin, host, secure=is_secure(request))
    else:
        # "none": typed, or from a bookmark.  "same-site" is another port of this very host.
        same = (header(request, b"Sec-Fetch-Site") or "none") in {"none", "same-origin"}
    if not same:
        raise RefusedError(
            "foreign_origin",
            f"this comes from a page of {(origin or 'another site')[:80]}, not of {host[:80]} "
            "(a proxy in front of this server must pass the Host header on)",
            403,
        )


def _repeated(request: Request, name: bytes) -> bool:
    return len(request.requestHeaders.getRawHeaders(name) or ()) > 1


def cookie_name(request: Request) -> str:
    return SECURE_COOKIE if is_secure(request) else COOKIE


def session_token(request: Request) -> str | None:
    """The token a request carries: ``Authorization: Bearer``, else the cookie.

    Under TLS the cookie of plain pages does not count: whoever can forge those could set it.
    """
    kind, _, token = (header(request, b"Authorization") or "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    cookie = request.getCookie(cookie_name(request).encode())  # type: ignore[no-untyped-call]
    return None if cookie is None else cookie.decode("ascii", "replace")


def client_host(request: Request) -> str:
    """The address the request comes from, IPv4 without an IPv6 cloak."""
    host: Any = getattr(request.getClientAddress(), "host", "")  # type: ignore[no-untyped-call]
    return plain(str(host))


MAX_NUMBER: Final = 1e12
"""Of a query parameter; Unix time in s reaches it in 31,000 years."""


def number(request: Request, name: str, default: float | None = None) -> float | None:
    """A query parameter that is a number.

    :raises RefusedError: 400 naming the parameter.
    """
    text = text_parameter(request, name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", text, re.ASCII):
        raise RefusedError("invalid_value", f"{name}: {text[:40]!r} is not a number")
    value = float(text)
    if value > MAX_NUMBER:
        raise RefusedError("invalid_value", f"{name}: is above {MAX_NUMBER:g}")
    return value


def text_parameter(request: Request, name: str) -> str | None:
    """The last value of a query parameter.

    :raises RefusedError: 400 naming the parameter if it is not UTF-8.
    """
    values = request.args.get(name.encode()) if request.args else None
    if not values:
        return None
    try:
        return str(values[-1].decode("utf-8"))
    except UnicodeDecodeError:
        raise RefusedError("invalid_value", f"{name}: is not UTF-8") from None
