"""The OpenAPI document of the table of calls, the same as a page, and the page to try them."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from app.bundle.request.validation import LATEST
from app.events import ID_BYTES
from app.recipe import Serve
from app.serving.http.calls import NDJSON, Endpoint
from app.serving.http.problems import CONTENT_TYPE, ProblemDocument

HOME = (Path(__file__).parent / "home.html").read_text()
Endpoints = tuple[Endpoint[Any], ...]
_STYLE = "body{font:15px system-ui;max-width:52rem;margin:2rem auto;padding:0 1rem}pre,td{vertical-align:top}"
_REFUSALS = {
    400: "The body is not JSON, or this is no HTTP request",
    401: "The API key is missing or wrong",
    405: "The path takes another method",
    408: "The request took too long to arrive",
    413: "The body is too long",
    415: "The body is not sent as the type named here",
    422: "A field is not as documented or breaks a limit",
    429: "Over capacity; wait as Retry-After says",
    500: "The service failed",
    503: "Not answered in time; try again",
}
_OF_STREAM = (401, 405, 408, 415, 429, 500, 503)
_OF_READ = (400, 401, 405, 408, 500, 503)
_NO_MODEL = {404: "No such model"}


@cache
def document(settings: Serve, endpoints: Endpoints) -> bytes:
    """The OpenAPI 3.1 document, as JSON.

    Args:
        settings: the recipe's [serve] section, for its limits.
        endpoints: the table of calls.
    """
    documented = [endpoint for endpoint in endpoints if endpoint.answer is not None]
    kinds = {kind for endpoint in documented for kind in (*_kinds(endpoint.body), *_kinds(endpoint.answer))}
    _, schemas = msgspec.json.schema_components(
        sorted((kinds - {str}) | {ProblemDocument}, key=lambda kind: kind.__name__),
        ref_template="#/components/schemas/{name}",
    )
    _limit(schemas, settings)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in documented:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, endpoint.path)
    for endpoint in documented:
        if endpoint.per_model:
            path = endpoint.path_of("{name}")
            paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path)
    content = {
        "openapi": "3.1.0",
        "info": {"title": "RayRec", "version": "1", "description": limits(settings)},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }
    return json.dumps(content).encode()


def _operation(endpoint: Endpoint[Any], path: str) -> dict[str, Any]:
    """A call as the document describes it at one of its paths."""
    operation: dict[str, Any] = {"summary": endpoint.summary}
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.media, endpoint.body)}
    answer = endpoint.answer
    if endpoint.streamed:
        answer = (*_kinds(answer), ProblemDocument)
    done = {"description": "Done", "content": _content(endpoint.media, answer)}
    problems = {status: _REFUSALS[status] for status in _statuses(endpoint)} | dict(endpoint.problems)
    if parameters := _parameters(path):
        operation["parameters"] = parameters
    if "{name}" in path:
        problems |= _NO_MODEL
    operation["responses"] = {str(endpoint.status): done, **_problems(problems)}
    return operation


def _statuses(endpoint: Endpoint[Any]) -> Iterable[int]:
    """Statuses of the refusals that a kind of call may get."""
    if endpoint.streamed:
        return _OF_STREAM
    return _REFUSALS if endpoint.body is not None else _OF_READ


def _parameters(path: str) -> list[dict[str, Any]]:
    schemas: dict[str, dict[str, Any]] = {
        "name": {"type": "string"},
        "id": {"type": "string", "minLength": 1, "maxLength": ID_BYTES},
    }
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in schemas.items()
        if f"{{{name}}}" in path
    ]


def _limit(schemas: dict[str, Any], settings: Serve) -> None:
    """Add what is checked beyond the types: lengths, counts, and the range of k."""
    text = {"minLength": 1, "maxLength": ID_BYTES}  # characters, of which one may take four bytes
    ids, many = {"type": "string", **text}, {"maxItems": settings.max_candidates}
    by_name: dict[str, dict[str, dict[str, Any]]] = {
        "RankRequest": {"user": ids, "items": {"type": "array", "items": ids, "minItems": 1, **many}},
        "RecommendRequest": {"user": ids, "exclude": {"type": "array", "items": ids, **many}},
        "SimilarRequest": {"item": ids},
        "FeedbackRequest": {"events": {"minItems": 1, **many}},
        "Event": {
            "user": ids,
            "item": ids,
            **{name: {"maxLength": ID_BYTES} for name in ("event", "variant")},
        },
    }
    for name, fields in by_name.items():
        for field, limit in fields.items():
            schemas[name]["properties"][field] |= limit
    for name in ("RecommendRequest", "SimilarRequest"):
        schemas[name]["properties"]["k"] |= {"minimum": 1, "maximum": settings.max_k}
    schemas["RankRequest"]["properties"]["k"]["anyOf"][0]["minimum"] = 1
    for name in ("Event", "HistoryEvent", "Context"):
        number, moment, _ = schemas[name]["properties"]["timestamp"]["anyOf"]
        number |= {"minimum": 0, "exclusiveMaximum": LATEST}
        moment["format"] = "date-time"


def limits(settings: Serve) -> str:
    """The limits of a request, in one sentence."""
    return (
        f"At most {settings.max_body_bytes} bytes a body, {settings.max_candidates} items or events a "
        f"request, k {settings.max_k}, {ID_BYTES} bytes an id; an answer within "
        f"{settings.request_timeout_s:g} s. A batch may have {settings.max_bulk_lines} lines, each as "
        "long as a body."
    )


@cache
def page(settings: Serve, endpoints: Endpoints) -> str:
    """The documentation as one page without external resources."""
    content = json.loads(document(settings, endpoints))
    rows = [
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td>"
        f"<td>{html.escape(operation['summary'])}</td><td>{_body_links(operation)}</td></tr>"
        for path, operations in content["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = [
        f"<h3 id={name}>{name}</h3><pre>{html.escape(json.dumps(schema, indent=1))}</pre>"
        for name, schema in content["components"]["schemas"].items()
    ]
    return (
        f"<!doctype html><meta charset=utf-8><title>RayRec: calls</title><style>{_STYLE}</style>"
        f"<h1>Calls</h1><p>{html.escape(limits(settings))} Errors are problem documents (RFC 9457). "
        "For machines: <a href=/openapi.json>/openapi.json</a>. <a href=/>Try it.</a></p>"
        f"<table>{''.join(rows)}</table><h2>Bodies</h2>{''.join(schemas)}"
    )


def _body_links(operation: dict[str, Any]) -> str:
    """Links to the schemas of an operation's body."""
    if "requestBody" not in operation:
        return ""
    ((media, content),) = operation["requestBody"]["content"].items()
    schemas = content["schema"].get("oneOf", [content["schema"]])
    names = [schema["$ref"].rpartition("/")[2] for schema in schemas]
    links = " or ".join(f"<a href=#{name}>{name}</a>" for name in names)
    return f"lines of {links}" if media == NDJSON else links


def _kinds(body: type | tuple[type, ...] | None) -> tuple[type, ...]:
    if body is None:
        return ()
    return body if isinstance(body, tuple) else (body,)


def _content(media: str, body: type | tuple[type, ...] | None) -> dict[str, Any]:
    """A body as the document describes it; of a stream the schema is that of a line."""
    if body is str:
        return {media: {"schema": {"type": "string"}}}
    references = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in _kinds(body)]
    return {media: {"schema": {"oneOf": references} if isinstance(body, tuple) else references[0]}}


def _problems(texts: dict[int, str]) -> dict[str, Any]:
    content = _content(CONTENT_TYPE, ProblemDocument)
    return {str(status): {"description": text, "content": content} for status, text in texts.items()}
