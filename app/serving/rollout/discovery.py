"""Where the services of this machine are: what each driver writes, and the verbs look up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import MachineError, RecipeError, disk_errors
from app.ray import processes
from app.serving.rollout.state import Service
from app.serving.rollout.state_dir import StateDir


@contextmanager
def announced(service: Service) -> Iterator[None]:
    """Be found for the block.

    Raises:
        MachineError: another service that runs has the same store.
    """
    board = StateDir(Path(service.store))
    check_free(board)
    board.announce(service)
    entry = _index() / str(service.pid)
    with disk_errors(str(entry)):
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(service.store)
    try:
        yield
    finally:
        entry.unlink(missing_ok=True)
        (board.folder / "service.json").unlink(missing_ok=True)


def check_free(board: StateDir) -> None:
    """Refuse a store that another service uses."""
    other = board.service()
    if other is not None and runs(other) and other.pid != os.getpid():
        raise MachineError(
            f"the service at {other.url} (process {other.pid}) uses this store",
            where=other.store,
            remedy="deploy to that one with `rayrec deploy`, or give serve.store another folder",
        )


def find(store: str = "", port: int = 0) -> Service:
    """The service with this store or port; with neither, the only one that runs.

    Raises:
        RecipeError: there is none, or more than one.
    """
    if store:
        service = StateDir(Path(store).absolute()).service()
        found = [service] if service is not None and runs(service) else []
    else:
        found = [one for one in _running() if not port or one.url.endswith(f":{port}")]
    if len(found) == 1:
        return found[0]
    which = f"with store {store}" if store else f"at port {port}" if port else "on this machine"
    if not found:
        raise RecipeError(f"no service runs {which}", remedy="start one with `rayrec serve BUNDLE`")
    listed = ", ".join(f"{one.url} ({one.store})" for one in found)
    raise RecipeError(f"several services run: {listed}", remedy="say which with --port or --store")


def runs(service: Service) -> bool:
    """Whether a service still runs."""
    return processes.lives(service.mark)


def _running() -> list[Service]:
    found = []
    for entry in sorted(_index().glob("*")):
        service = StateDir(Path(entry.read_text())).service()
        if service is not None and str(service.pid) == entry.name and runs(service):
            found.append(service)
        else:
            entry.unlink(missing_ok=True)
    return found


def _index() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "rayrec" / "services"
