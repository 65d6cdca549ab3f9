"""Whether a service keeps to its own OpenAPI document, by Schemathesis: good requests and bad ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/x-ndjson")
def one_line(context: Any, value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def check(url: str, headers: Mapping[str, str], examples: int) -> Counter[tuple[str, int]]:
    """Call every operation `examples` times with requests that its schema allows, and with others.

    Returns:
        How often which path had which status.

    Raises:
        Exception: an answer that the document does not announce; names it.
    """
    statuses: Counter[tuple[str, int]] = Counter()
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = result.ok()
        modes = GenerationMode if operation.body else (GenerationMode.POSITIVE,)
        for mode in modes:  # of an operation without a body nothing can be wrong

            @seed(0)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(operation.as_strategy(generation_mode=mode))
            def conforms(case: Any) -> None:
                response = case.call_and_validate(checks=CHECKS, headers=dict(headers))
                statuses[case.operation.path, response.status_code] += 1

            conforms()
    return statuses
