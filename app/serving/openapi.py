"""The OpenAPI document of the table of calls, with an example of each that the model served can answer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec

from app.bundle.request.validation import LATEST
from app.events import ID_BYTES
from app.recipe import Serve
from app.serving.http.calls import Endpoint, Example
from app.serving.http.problems import CONTENT_TYPE, ProblemDocument

Endpoints = tuple[Endpoint[Any], ...]
PLACEHOLDERS = Example(("USER",), ("ITEM",), ("EVENT",), {})  # for callers who may not see ids
EXAMPLE_K, EXAMPLE_ITEMS = 5, 3
_CACHED = 4  # versions of a model, with and without its ids
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
_NO_MODEL = "No such model"


def document(settings: Serve, endpoints: Endpoints, model: str, example: Example) -> bytes:
    """The OpenAPI 3.1 document, as JSON.

    Args:
        settings: the recipe's [serve] section, for its limits.
        endpoints: the table of calls.
        model: name of the main model.
        example: what the examples are about.
    """
    return _document(settings, endpoints, model, msgspec.json.encode(example))


@lru_cache(_CACHED)
def _document(settings: Serve, endpoints: Endpoints, model: str, encoded: bytes) -> bytes:
    example = msgspec.json.decode(encoded, type=Example)
    documented = [endpoint for endpoint in endpoints if endpoint.answer is not None]
    kinds = {kind for endpoint in documented for kind in (*_kinds(endpoint.body), *_kinds(endpoint.answer))}
    _, schemas = msgspec.json.schema_components(
        sorted((kinds - {str}) | {ProblemDocument}, key=lambda kind: kind.__name__),
        ref_template="#/components/schemas/{name}",
    )
    _limit(schemas, settings)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in documented:
        operation = _operation(endpoint, endpoint.path, model, example)
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    for endpoint in documented:
        if endpoint.per_model:
            path = endpoint.path_of("{name}")
            operation = _operation(endpoint, path, model, example)
            paths.setdefault(path, {})[endpoint.method.lower()] = operation
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


def _operation(endpoint: Endpoint[Any], path: str, model: str, example: Example) -> dict[str, Any]:
    """A call as the document describes it at one of its paths."""
    operation: dict[str, Any] = {"summary": endpoint.summary}
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.body is not None:
        content = _content(endpoint.media, endpoint.body)
        content[endpoint.media] |= _body_example(_kinds(endpoint.body)[0], example)
        operation["requestBody"] = {"required": True, "content": content}
    answer = endpoint.answer
    if endpoint.streamed:
        answer = (*_kinds(answer), ProblemDocument)
    done = {"description": "Done", "content": _content(endpoint.media, answer)}
    problems = {status: _REFUSALS[status] for status in _statuses(endpoint)} | dict(endpoint.problems)
    if parameters := _parameters(path, model, example):
        operation["parameters"] = parameters
    if query := _query_parameters(endpoint):
        operation.setdefault("parameters", []).extend(query)
    if "{name}" in path:
        problems[404] = "; ".join(text for text in (_NO_MODEL, problems.get(404, "")) if text)
    operation["responses"] = {str(endpoint.status): done, **_problems(problems)}
    return operation


def _statuses(endpoint: Endpoint[Any]) -> Iterable[int]:
    """Statuses of the refusals that a kind of call may get."""
    if endpoint.streamed:
        return _OF_STREAM
    if endpoint.query is not None:
        return (*_OF_READ, 422, 429)
    return _REFUSALS if endpoint.body is not None else _OF_READ


def _parameters(path: str, model: str, example: Example) -> list[dict[str, Any]]:
    """The parameters in a path, each with its example."""
    known = example.users if "/users/" in path else example.items
    schemas: dict[str, tuple[dict[str, Any], str]] = {
        "name": ({"type": "string"}, model),
        "id": ({"type": "string", "minLength": 1, "maxLength": ID_BYTES}, next(iter(known), "")),
    }
    return [
        {"name": name, "in": "path", "required": True, "schema": schema, "example": value}
        for name, (schema, value) in schemas.items()
        if f"{{{name}}}" in path
    ]


def _query_parameters(endpoint: Endpoint[Any]) -> list[dict[str, Any]]:
    """The query parameters of a call; none is required."""
    if endpoint.query is None:
        return []
    _, schemas = msgspec.json.schema_components([endpoint.query], ref_template="{name}")
    properties: dict[str, dict[str, Any]] = schemas[endpoint.query.__name__]["properties"]
    if "k" in properties:
        properties["k"]["minimum"] = 1
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            **({"example": EXAMPLE_K} if name == "k" else {}),
        }
        for name, schema in properties.items()
        if name != "id"
    ]


def _body_example(kind: type, example: Example) -> dict[str, Any]:
    """The example of a body: the fields it must have, and k, by what they are called.

    Nothing where a field it must have is of another name.
    """
    user, item, event = (next(iter(known), "") for known in (example.users, example.items, example.events))
    values = {
        "user": user,
        "item": item,
        "items": example.items[:EXAMPLE_ITEMS],
        "events": [{"user": user, "item": item, **({"event": event} if event else {})}],
        "columns": example.columns,
    }
    fields = msgspec.structs.fields(kind)
    body = {field.name: values.get(field.name) for field in fields if field.required}
    if None in body.values():
        return {}
    return {"example": body | {field.name: EXAMPLE_K for field in fields if field.name == "k"}}


def _limit(schemas: dict[str, Any], settings: Serve) -> None:
    """Add what is checked beyond the types: lengths, counts, and the range of k."""
    text = {"minLength": 1, "maxLength": ID_BYTES}  # characters, of which one may take four bytes
    # An integer means its decimal text.
    ids, many = {"type": ["string", "integer"], **text}, {"maxItems": settings.max_candidates}
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
