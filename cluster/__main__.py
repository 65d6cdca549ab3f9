"""python -m cluster up | down | status | submit -- VERB … | serve-config BUNDLE."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cluster import api, jobs, node, state
from cluster.errors import ClusterError
from cluster.serve_config import serve_config


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 the user's mistake, 130 interrupted, of `submit` the job's own."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return jobs.INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster", description="A Ray node on this machine, and jobs on it."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("up", help="start a Ray head node on this machine and wait until it is ready")
    verbs.add_parser("down", help="end that node and everything that it started")
    status = verbs.add_parser("status", help="nodes, resources and jobs")
    status.add_argument("--json", action="store_true", help="one JSON object on stdout")
    submit = verbs.add_parser("submit", help="run `python -m app …` as a job: submit -- run RECIPE")
    submit.add_argument("--working-dir", type=Path, default=Path(), help="uploaded for the job (default: .)")
    submit.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the job"
    )
    submit.add_argument("arguments", nargs="+", metavar="ARG", help="after --: verb and arguments of rayrec")
    config = verbs.add_parser("serve-config", help="print a configuration for `serve deploy`")
    config.add_argument("bundle", help="folder of the bundle, readable by every node, or its URI")
    config.add_argument("--port", type=int, default=8000)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    match arguments.verb:
        case "up":
            _up()
        case "down":
            print(f"down: {node.down()} processes ended", file=sys.stderr)
        case "status":
            _status(arguments.json)
        case "serve-config":
            print(serve_config(arguments.bundle, port=arguments.port), end="")
        case _:
            variables = dict(_variable(text) for text in arguments.env)
            return jobs.submit(arguments.arguments, arguments.working_dir, variables)
    return 0


def _up() -> None:
    print("up: starting a Ray head node …", file=sys.stderr)
    started = node.up()
    print(f"up: ready at {started.address}, jobs at {started.dashboard} (pid {started.pid})", file=sys.stderr)
    address = f"RAY_ADDRESS={started.dashboard} RAY_DASHBOARD_ADDRESS={started.dashboard}"
    own = f"{address} RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={state.token()}"
    print(f"for `ray job` and `serve deploy`: export {own}", file=sys.stderr)
    print("next: python -m cluster submit -- run RECIPE --out DIR", file=sys.stderr)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ClusterError(f"--env {text!r} is no variable", "write NAME=VALUE")
    return name, value


def _status(as_json: bool) -> None:
    running = state.running()
    nodes, submitted = api.nodes(running.dashboard), api.jobs(running.dashboard)
    if as_json:
        print(json.dumps({"address": running.address, "nodes": nodes, "jobs": submitted}))
        return
    print(f"{running.address}, jobs at {running.dashboard}")
    for each in nodes:
        total = each["resources_total"]
        memory = total.get("memory", 0) / 2**30
        gpus = f", {total['GPU']:.0f} GPU" if total.get("GPU") else ""
        print(
            f"node {each['node_ip']}: {each['state']}, {total.get('CPU', 0):.0f} CPU{gpus}, {memory:.1f} GiB"
        )
    for job in submitted:
        print(f"job {job['submission_id']}: {job['status']}, {job['entrypoint']}")


if __name__ == "__main__":
    sys.exit(main())
