"""The pages of the service: one to try the model, one with all calls, and the policy they keep to."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.serving.http.calls import NDJSON

_FOLDER = Path(__file__).parent
HOME = (_FOLDER / "home.html").read_text()
_DOCS = (_FOLDER / "docs.html").read_text()
_CACHED = 4


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own script and style run, and nothing else.

    Pictures of items come from wherever their shop keeps them; nothing else leaves the service.
    """
    script, style = (_digest(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "img-src https: http: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(page: str, tag: str) -> str:
    """The digest of the one element of this tag, as the policy names it."""
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


HOME_POLICY, DOCS_POLICY = policy(HOME), policy(_DOCS)


@lru_cache(_CACHED)
def docs(document: bytes, address: str) -> str:
    """The documentation as one page without external resources, with a form to send each call.

    Args:
        document: the OpenAPI document.
        address: host and port of the service, for the lines with curl.
    """
    content = json.loads(document)
    calls = [
        _call(method.upper(), path, operation, address)
        for path, operations in content["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = [
        f"<details id={name}><summary><code>{name}</code></summary>"
        f"<pre>{html.escape(json.dumps(schema, indent=1))}</pre></details>"
        for name, schema in content["components"]["schemas"].items()
    ]
    parts = {
        "limits": html.escape(content["info"]["description"]),
        "calls": "\n".join(calls),
        "schemas": "\n".join(schemas),
    }
    return re.sub(r"<!--(\w+)-->", lambda mark: parts[mark[1]], _DOCS)


def _call(method: str, path: str, operation: dict[str, Any], address: str) -> str:
    """A call: what it does, a form that sends it, and its answer."""
    body: dict[str, Any] = operation.get("requestBody", {}).get("content", {})
    media = next(iter(body), "")
    content = body.get(media, {})
    example = json.dumps(content["example"]) if "example" in content else ""
    parameters = operation.get("parameters", [])
    fields = "".join(map(_field, parameters))
    if media:
        lines = min(8, 2 + len(example) // 50)
        text = html.escape(example)
        fields += f"<label>Body: {_links(media, content)}<textarea rows={lines}>{text}</textarea></label>"
    described = f"<p>{html.escape(operation['description'])}</p>" if "description" in operation else ""
    curl = html.escape(_curl(method, path, parameters, media, example, address))
    return (
        f'<details data-method="{method}" data-path="{html.escape(path)}" data-media="{media}">'
        f"<summary><code>{method} {html.escape(path)}</code><span>{html.escape(operation['summary'])}"
        f'</span></summary>{described}<div class="pair"><div>{fields}<button type="button">Send</button>'
        f'<pre class="curl">{curl}</pre></div><pre class="answer" role="status"></pre></div></details>'
    )


def _field(parameter: dict[str, Any]) -> str:
    name, value = parameter["name"], html.escape(str(parameter.get("example", "")))
    return f'<label>{name} <input data-parameter="{name}" value="{value}"></label> '


def _curl(
    method: str, path: str, parameters: list[dict[str, Any]], media: str, example: str, address: str
) -> str:
    """The call as a line for a shell; the page's script writes it anew when somebody changes the form."""
    query = []
    for parameter in parameters:
        name, value = parameter["name"], quote(str(parameter.get("example", "")), safe="")
        if parameter["in"] == "path":
            path = path.replace(f"{{{name}}}", value)
        elif value:
            query.append(f"{name}={value}")
    url = "?".join([address + path, *(["&".join(query)] if query else [])])
    words = ["curl", "-s", *(["-X", "PUT"] if method == "PUT" else []), url]
    if media:
        words += ["-H", f"content-type: {media}", "--data-binary", example]
    return shlex.join(words)


def _links(media: str, content: dict[str, Any]) -> str:
    """Links to the schemas of a body."""
    schemas = content["schema"].get("oneOf", [content["schema"]])
    names = [schema["$ref"].rpartition("/")[2] for schema in schemas]
    links = " or ".join(f"<a href=#{name}>{name}</a>" for name in names)
    return f"lines of {links}" if media == NDJSON else links
