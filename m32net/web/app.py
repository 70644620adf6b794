"""The one Klein application all routes hang on, and what happens when one fails.

The routes are in :mod:`m32net.web.public`, :mod:`m32net.web.admin` and :mod:`m32net.web.pages`;
:mod:`m32net.web.api` puts them together.
"""

from __future__ import annotations

from typing import Any, Final

from klein import Klein
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException

from m32net.interfaces import RefusedError
from m32net.log import RoomLog
from m32net.web.answers import error_answer, http_error_answer, refusal_answer

app: Final = Klein()
"""Shared by the classes whose methods are its routes; each instance gets a bound copy."""

_log = RoomLog(namespace="m32net.web")


class ErrorRoutes:
    """Every failure becomes a JSON error; nothing of ours is shown to the client.

    :ivar failures: answers that had to be 500, since the start.
    """

    failures = 0

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        error = failure.value
        if isinstance(error, RefusedError):
            return refusal_answer(request, error)
        if isinstance(error, HTTPException):
            return http_error_answer(request, error)
        self.failures += 1
        _log.failure(
            "web: {method} {path} failed", failure, method=request.method, path=request.path
        )
        return error_answer(request, 500, "internal_error", "this went wrong; the log says more")
