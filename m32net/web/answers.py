"""What every route needs: reading a JSON body with refusals a person understands, and answering.

Errors are ``{"error": {"code", "message"}}`` with a fitting status, whatever went wrong.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from m32net.interfaces import RefusedError
from m32net.web.bodies import ErrorBody, ErrorDetail

T = TypeVar("T")

MAX_BODY: Final = 1024 * 1024
"""CON-2, in bytes."""
JSON: Final = "application/json"
COOKIE: Final = "m32net_session"

_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
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


def answer(request: Request, body: bytes, media_type: str, status: int = 200) -> bytes:
    """Set what describes ``body`` and give it back, for a route to return."""
    request.setResponseCode(status)
    set_header(request, "Content-Type", media_type)
    set_header(request, "Content-Length", str(len(body)))
    return body


def json_answer(request: Request, body: object, status: int = 200) -> bytes:
    """``body`` as JSON; a float that is not finite becomes null."""
    return answer(request, msgspec.json.encode(body, enc_hook=str), JSON, status)


def error_answer(request: Request, status: int, code: str, message: str) -> bytes:
    return json_answer(request, ErrorBody(ErrorDetail(code, message)), status)


def refusal_answer(request: Request, error: RefusedError) -> bytes:
    if error.status == 401:
        set_header(request, "WWW-Authenticate", "Bearer")
    elif error.status in {429, 503}:
        set_header(request, "Retry-After", "6")
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

    :raises RefusedError: 400 that names the field, 403 for another site's page, 413.
    """
    check_origin(request)
    assert request.content is not None
    data = request.content.read()
    if len(data) > MAX_BODY:
        raise RefusedError("too_large", f"the body has more than {MAX_BODY} bytes", 413)
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
    """A page of another site must not use the browser's cookie to change anything here.

    :raises RefusedError: 403.
    """
    origin = header(request, b"Origin")
    if origin is None:
        return
    host = header(request, b"Host") or ""
    try:
        same = urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        same = False
    if not same:
        raise RefusedError(
            "foreign_origin",
            f"this comes from a page of {origin[:80]}, not of {host[:80]} (a proxy in front of "
            "m32net must pass the Host header on)",
            403,
        )


def session_token(request: Request) -> str | None:
    """The token a request carries: ``Authorization: Bearer``, else the cookie."""
    kind, _, token = (header(request, b"Authorization") or "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    cookie = request.getCookie(COOKIE.encode())  # type: ignore[no-untyped-call]
    return None if cookie is None else cookie.decode("ascii", "replace")


def client_host(request: Request) -> str:
    """The address the request comes from, IPv4 without an IPv6 cloak."""
    host: Any = getattr(request.getClientAddress(), "host", "")  # type: ignore[no-untyped-call]
    return str(host).removeprefix("::ffff:")


def number(request: Request, name: str, default: float | None = None) -> float | None:
    """A query parameter that is a number.

    :raises RefusedError: 400 naming the parameter.
    """
    text = text_parameter(request, name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text, re.ASCII):
        raise RefusedError("invalid_value", f"{name}: {text[:40]!r} is not a number")
    return float(text)


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
