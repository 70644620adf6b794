"""The OpenAPI 3.1 description of the REST interface, made from the bodies and the route table."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from m32net.web import bodies
from m32net.web.answers import COOKIE, SECURE_COOKIE
from m32net.web.operations import JSON, OPERATIONS, Operation

_REFUSALS: Final = {
    307: "The listeners move to another server; ask there.",
    400: "The request can't be used; the message names the field.",
    401: "Not logged in.",
    403: "This comes from a page of another site, or is not this address's to do.",
    404: "There is no such thing.",
    409: "Not in this state.",
    413: "The body has more than 1 MiB, as it came or unpacked.",
    415: "The body is compressed by other means than gzip.",
    429: "Too many attempts or connections; Retry-After says when to try again.",
    502: "The other server could not be asked.",
    503: "Not possible now.",
}


_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    "secureCookie": {"type": "apiKey", "in": "cookie", "name": SECURE_COOKIE},
    "certificate": {"type": "mutualTLS"},
}


def document(version: str) -> bytes:
    """The OpenAPI document as JSON."""
    types = [one for op in OPERATIONS for one in (op.answer, op.body) if one is not None]
    types.append(bodies.ErrorBody)
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schema_of = {_key(one): schema for one, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "m32net",
                "version": version,
                "summary": "Personal monitoring for the Midas M32 and Behringer X32",
                "description": "Audio is set up over the WebSocket at /ws; this is the rest. "
                "Routes marked with a security requirement need the engineer's session.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": _SCHEMES,
            },
        }
    )


def _key(type_: Any) -> str:
    return repr(type_)


def _described(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    words = operation.path.strip("/").replace("{", "").replace("}", "").replace(".", "/")
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": "_".join([operation.method, *(words or "page").split("/")]),
        "responses": _responses(operation, schema_of),
    }
    if operation.parameters:
        described["parameters"] = [
            {
                "name": one.name,
                "in": one.where,
                "required": one.required,
                "description": one.text,
                "schema": one.schema,
            }
            for one in operation.parameters
        ]
    if operation.body is not None:
        schema = schema_of[_key(operation.body)]
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if operation.admin:
        described["security"] = [
            {name: []} for name in _SCHEMES if operation.peer or name != "certificate"
        ]
    return described


def _responses(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    """Every status this operation answers with; there are no others."""
    error = schema_of[_key(bodies.ErrorBody)]
    if operation.answer is not None:
        media, answer = JSON, schema_of[_key(operation.answer)]
    else:
        media, answer = operation.media, {"type": "string"}
    responses: dict[str, Any] = {
        str(status): {"description": _REFUSALS[status], "content": {JSON: {"schema": error}}}
        for status in operation.statuses
    }
    for status in (200, *operation.also):
        schema = {"anyOf": [answer, error]} if str(status) in responses else answer
        responses[str(status)] = {
            "description": operation.summary,
            "content": {media: {"schema": schema}},
        }
    if operation.kept:
        responses["304"] = {"description": "What the client has is still so."}
    return dict(sorted(responses.items()))
