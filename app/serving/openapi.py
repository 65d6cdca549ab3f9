"""What a browser gets: a page to look and click, the documentation, the OpenAPI document."""

from __future__ import annotations

import html
import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from app.bundle.request.requests import (
    Accepted,
    Answer,
    FeedbackRequest,
    ItemAnswer,
    ItemRequest,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)
from app.bundle.request.validation import LATEST
from app.events import ID_BYTES
from app.recipe import Serve
from app.serving.feedback import new_items
from app.serving.http.guard import JSON
from app.serving.http.problems import CONTENT_TYPE, ProblemDocument
from app.serving.scoring import bulk
from app.serving.scoring.registry import KINDS, path_of


def _fields(**kinds: str) -> dict[str, Any]:
    """Schema of an object with these fields at least, each of a type of JSON."""
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": list(kinds)}


HOME = (Path(__file__).parent / "home.html").read_text()
_STYLE = "body{font:15px system-ui;max-width:52rem;margin:2rem auto;padding:0 1rem}pre,td{vertical-align:top}"
_CALLS: dict[str, tuple[type, type, int, str]] = {  # path: body, answer, status, summary
    "/v1/rank": (RankRequest, Answer, 200, "Score these items for a user, best first"),
    "/v1/recommend": (RecommendRequest, Answer, 200, "The best k items for a user"),
    "/v1/similar": (SimilarRequest, Answer, 200, "The nearest k items to an item"),
    "/v1/feedback": (FeedbackRequest, Accepted, 202, "Store what users did; the next request uses it"),
}
_BULK = {
    "summary": "Rank or recommend for many: a request a line, answered in order, streamed",
    "description": (
        "A line with `items` ranks them, one without recommends. A line that cannot be answered gets "
        "a problem document with its number in its place. Read answers while you send, as curl does: "
        "lines are read no faster than answers are taken."
    ),
}
_READS: dict[str, tuple[str, str, dict[str, Any]]] = {  # path: summary, media type, schema
    "/v2/health/live": ("Whether the process answers", JSON, _fields(live="boolean")),
    "/v2/health/ready": (
        "Whether the model is loaded",
        JSON,
        _fields(ready="boolean", model="string", version="string"),
    ),
    "/v2/models/{name}": (
        "Name, versions and figures of the model",
        JSON,
        _fields(name="string", versions="array", platform="string", figures="object", state="string"),
    ),
    "/v2/models/{name}/ready": (
        "Whether calls of the model are answered; the first may have to load it",
        JSON,
        _fields(name="string", ready="boolean", state="string"),
    ),
    "/metrics": ("Counts and times for Prometheus", "text/plain", {"type": "string"}),
}
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


@cache
def openapi(settings: Serve) -> bytes:
    """The OpenAPI 3.1 document, as JSON."""
    kinds = {kind for body, answer, _, _ in _CALLS.values() for kind in (body, answer)} | {
        ItemAnswer,
        ItemRequest,
        ProblemDocument,
    }
    _, schemas = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    _limit(schemas, settings)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "RayRec", "version": "1", "description": limits(settings)},
        "paths": {path: _write(*call) for path, call in _CALLS.items()}
        | {path_of("{name}", kind): _of_model(_write(*_CALLS[f"/v1/{kind}"])) for kind in KINDS}
        | {bulk.PATH: _stream(), f"{new_items.PREFIX}{{id}}": _put_item()}
        | {path: _read(path, *call) for path, call in _READS.items()},
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }
    return json.dumps(document).encode()


def _limit(schemas: dict[str, Any], settings: Serve) -> None:
    """What is checked beyond the types: lengths, counts, and the range of k."""
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
def docs(settings: Serve) -> str:
    """The documentation as one page without external resources."""
    document = json.loads(openapi(settings))
    rows = [
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td>"
        f"<td>{html.escape(call['summary'])}</td><td>{_body_name(call)}</td></tr>"
        for path, calls in document["paths"].items()
        for method, call in calls.items()
    ]
    schemas = [
        f"<h3 id={name}>{name}</h3><pre>{html.escape(json.dumps(schema, indent=1))}</pre>"
        for name, schema in document["components"]["schemas"].items()
    ]
    return (
        f"<!doctype html><meta charset=utf-8><title>RayRec: calls</title><style>{_STYLE}</style>"
        f"<h1>Calls</h1><p>{html.escape(limits(settings))} Errors are problem documents (RFC 9457). "
        "For machines: <a href=/openapi.json>/openapi.json</a>. <a href=/>Try it.</a></p>"
        f"<table>{''.join(rows)}</table><h2>Bodies</h2>{''.join(schemas)}"
    )


def _body_name(call: dict[str, Any]) -> str:
    if "requestBody" not in call:
        return ""
    ((media, content),) = call["requestBody"]["content"].items()
    schemas = content["schema"].get("oneOf", [content["schema"]])
    names = [schema["$ref"].rpartition("/")[2] for schema in schemas]
    shown = " or ".join(f"<a href=#{name}>{name}</a>" for name in names)
    return f"lines of {shown}" if media == bulk.NDJSON else shown


def _write(body: type, answer: type, status: int, summary: str) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _content(JSON, _ref(body))},
            "responses": {
                str(status): {"description": "Done", "content": _content(JSON, _ref(answer))},
                **_problems(*_REFUSALS),
            },
        }
    }


def _put_item() -> dict[str, Any]:
    """The call for new items, which takes the administrator's key where there is one."""
    call = _write(ItemRequest, ItemAnswer, 200, "Say all that is known of an item, new or changed")["post"]
    call["description"] = (
        "The next request knows it: a new item is ranked by its content, a known one by what training "
        "learned. Takes RAYREC_ADMIN_KEY, where the service has one, in the place of its API key."
    )
    call["parameters"] = [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": ID_BYTES},
        }
    ]
    call["responses"] |= _problems(507)
    return {"put": call}


def _stream() -> dict[str, Any]:
    """The call for batches. A schema describes one line."""
    lines, answers = (
        _content(bulk.NDJSON, {"oneOf": [_ref(kind) for kind in kinds]})
        for kinds in ((RankRequest, RecommendRequest), (Answer, ProblemDocument))
    )
    return {
        "post": {
            **_BULK,
            "requestBody": {"required": True, "content": lines},
            "responses": {
                "200": {"description": "A line for each line", "content": answers},
                **_problems(401, 405, 408, 415, 429, 500, 503),
            },
        }
    }


def _read(path: str, summary: str, media: str, schema: dict[str, Any]) -> dict[str, Any]:
    call: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done", "content": _content(media, schema)},
            **_problems(400, 401, 405, 408, 500, 503),
        },
    }
    return _of_model({"get": call}) if "{name}" in path else {"get": call}


def _of_model(calls: dict[str, Any]) -> dict[str, Any]:
    """The same for the model that is named in the path."""
    for call in calls.values():
        call["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        call["responses"] |= _problems(404)
    return calls


def _problems(*statuses: int) -> dict[str, Any]:
    full = "There are as many new items as serve.max_new_items allows: train again, or raise it"
    texts = {**_REFUSALS, 404: "No such model", 507: full}
    content = _content(CONTENT_TYPE, _ref(ProblemDocument))
    return {str(s): {"description": texts[s], "content": content} for s in statuses}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _content(media: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {media: {"schema": schema}}
