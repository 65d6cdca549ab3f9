"""Runs `python -m app …` as a Ray job: logs followed, the job's own exit code returned.

`ray job submit` exits with 1 whatever the job's code was, and the job's working directory
vanishes with it. So the exit code is asked for, and every path that a job is given is made
absolute: node and caller share this machine's disk, the results are where `--out` says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import environment, state
from cluster.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

EXCLUDES = [".git", ".venv*", "runs", "__pycache__", "*.pyc"]
RESULT_VERBS = ("run", "tune")  # verbs that write a folder and can print one JSON object
INTERRUPTED = 130


def submit(arguments: Sequence[str], working_dir: Path, variables: Mapping[str, str]) -> int:
    """Run `python -m app ARGUMENTS` on the node and wait for its end.

    The job's output goes to stderr as it comes; a last line that is a JSON object (the
    result of `--json`) goes to stdout as well.

    Args:
        arguments: verb and its arguments; files are found from the current folder.
        working_dir: uploaded as the job's working directory, without what git ignores.
        variables: environment of the job, beside $RAYREC_DATA, which is passed on.

    Returns:
        The job's exit code; 130 where it was interrupted.

    Raises:
        ClusterError: no node is up, or the job could not be submitted.
    """
    client = _client(state.running())
    command = [sys.executable, "-m", "app", *absolute(arguments, Path.cwd())]
    job = _submitted(client, shlex.join(command), working_dir, job_variables(variables))
    print(f"job {job}: {shlex.join(command[1:])}", file=sys.stderr)
    try:
        result = asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        client.stop_job(job)
        print(f"job {job}: stopped", file=sys.stderr)
        return INTERRUPTED
    if result is not None:
        print(result)
    return asyncio.run(_exit_code(client, job))


def absolute(arguments: Sequence[str], folder: Path) -> list[str]:
    """Arguments with every existing path, and the value of `--out`, made absolute.

    A verb that writes results gets an `--out` of runs/RECIPE below `folder` and `--json`,
    where they are not given.
    """
    job_arguments: list[str] = []
    for argument in arguments:
        if job_arguments and job_arguments[-1] == "--out":
            job_arguments.append(str(folder / argument))
        elif argument.startswith("--out="):
            job_arguments.append("--out=" + str(folder / argument.removeprefix("--out=")))
        elif job_arguments and not argument.startswith("-") and (folder / argument).exists():
            job_arguments.append(str((folder / argument).resolve()))
        else:
            job_arguments.append(argument)
    if len(job_arguments) < 2 or job_arguments[0] not in RESULT_VERBS:
        return job_arguments
    if not any(a == "--out" or a.startswith("--out=") for a in job_arguments):
        job_arguments += ["--out", str(folder / "runs" / Path(job_arguments[1]).stem)]
    return job_arguments if "--json" in job_arguments else [*job_arguments, "--json"]


def job_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The job's environment: what is asked for, and where the data sets are."""
    data = os.environ.get("RAYREC_DATA")
    return {**({"RAYREC_DATA": str(Path(data).absolute())} if data else {}), **variables}


def last_object(text: str) -> str | None:
    """The last line of `text` that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{") and line.endswith("}"):
            try:
                json.loads(line)
            except ValueError:
                continue
            return line
    return None


def _client(running: state.Node) -> JobSubmissionClient:
    os.environ.update(environment.of_client())
    # These would lead the client elsewhere: to another cluster, or through a proxy.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # the client tells of uploads and closed connections
    try:
        return JobSubmissionClient(running.dashboard)
    except ConnectionError as error:
        raise ClusterError(
            f"the node does not answer ({error})", "`python -m cluster down`, then up"
        ) from None


def _submitted(
    client: JobSubmissionClient, entrypoint: str, working_dir: Path, variables: dict[str, str]
) -> str:
    runtime: dict[str, Any] = {"excludes": EXCLUDES, "env_vars": variables}
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint, runtime_env={"working_dir": str(working_dir.resolve()), **runtime}
            )
        )
    except (RuntimeError, ValueError, OSError) as error:
        remedy = "choose a smaller --working-dir, or list what is large in a .rayignore file"
        raise ClusterError(f"the job was not accepted: {str(error).strip()[:500]}", remedy) from None


async def _follow(client: JobSubmissionClient, job: str) -> str | None:
    """Pass the log on to stderr; returns the JSON object of its end, if there is one."""
    end = ""
    async for chunk in client.tail_job_logs(job):
        sys.stderr.write(chunk)
        sys.stderr.flush()
        end = (end + chunk)[-(1 << 20) :]
    return last_object(end)


async def _exit_code(client: JobSubmissionClient, job: str) -> int:
    info = client.get_job_info(job)
    while not info.status.is_terminal():  # the log ends a moment before the status says so
        await asyncio.sleep(0.1)
        info = client.get_job_info(job)
    status = str(info.status)
    print(f"job {job}: {status.lower()}", file=sys.stderr)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return INTERRUPTED
    if info.driver_exit_code is None:
        print(f"job {job}: {info.message}", file=sys.stderr)
    return info.driver_exit_code or 1
