"""The HTTP API of a node's dashboard, with its token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from cluster import state
from cluster.errors import ClusterError


def get(dashboard: str, path: str) -> Any:
    """JSON of a GET request.

    Raises:
        ClusterError: no answer, or one that is not a 200.
    """
    request = urllib.request.Request(
        dashboard + path, headers={"Authorization": f"Bearer {state.token().read_text()}"}
    )
    # The node is on this machine: a proxy of the environment has no part in it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{dashboard}{path} does not answer ({error})", "`python -m cluster down`, then up"
        ) from None


def ready(dashboard: str) -> bool:
    """Whether the node is registered and its job API answers."""
    try:
        get(dashboard, "/api/jobs/")
        return any(n["state"] == "ALIVE" for n in nodes(dashboard))
    except ClusterError:
        return False


def nodes(dashboard: str) -> list[dict[str, Any]]:
    """Nodes with `node_id`, `state` and `resources_total`."""
    listed: list[dict[str, Any]] = get(dashboard, "/api/v0/nodes?limit=1000")["data"]["result"]["result"]
    return listed


def jobs(dashboard: str) -> list[dict[str, Any]]:
    """Submitted jobs, oldest first, with `submission_id`, `status` and `entrypoint`."""
    submitted = [j for j in get(dashboard, "/api/jobs/") if j.get("type") == "SUBMISSION"]
    return sorted(submitted, key=lambda j: j.get("start_time") or 0)
