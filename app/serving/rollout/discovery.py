"""Which services run on this machine: each driver announces its own, and the verbs look them up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from app.errors import MachineError, RecipeError, disk_errors
from app.files import AlreadyLocked, locked, private_folder, write_atomically
from app.ray import processes
from app.serving.rollout.state import Service
from app.serving.rollout.state_dir import StateDir


@contextmanager
def announced(service: Service) -> Iterator[None]:
    """Let `find` return a service for the block.

    Raises:
        MachineError: another service that runs has the same store.
    """
    state_dir = StateDir(Path(service.store))
    check_unused(state_dir)
    state_dir.announce(service)
    entry = _index() / str(service.pid)
    with disk_errors(str(entry)):
        write_atomically(entry, service.store.encode())
    try:
        yield
    finally:
        entry.unlink(missing_ok=True)
        (state_dir.folder / "service.json").unlink(missing_ok=True)


@contextmanager
def holding_store(state_dir: StateDir) -> Iterator[None]:
    """Keep a store for one service for the block, from before it writes there; the folder is made.

    Raises:
        MachineError: another service has it or is about to, or the folder cannot be written.
    """
    check_unused(state_dir)
    with ExitStack() as stack:
        try:
            with disk_errors(str(state_dir.folder.parent)):
                private_folder(state_dir.folder.parent)  # what users did, and what is served
                stack.enter_context(locked(state_dir.folder / "service.lock", wait=False))
        except AlreadyLocked:
            raise MachineError(
                "another service is starting or ending with this store",
                where=str(state_dir.folder.parent),
                remedy="wait a moment, or give serve.store another folder",
            ) from None
        yield


def check_unused(state_dir: StateDir) -> None:
    """Refuse a store that another service uses.

    Raises:
        MachineError: names the service.
    """
    other = state_dir.service()
    if other is not None and is_running(other) and other.pid != os.getpid():
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
        matching = [service] if service is not None and is_running(service) else []
    else:
        matching = [service for service in _running() if not port or service.url.endswith(f":{port}")]
    if len(matching) == 1:
        return matching[0]
    which = f"with store {store}" if store else f"at port {port}" if port else "on this machine"
    if not matching:
        raise RecipeError(f"no service runs {which}", remedy="start one with `rayrec serve BUNDLE`")
    listed = ", ".join(f"{service.url} ({service.store})" for service in matching)
    raise RecipeError(f"several services run: {listed}", remedy="say which with --port or --store")


def is_running(service: Service) -> bool:
    """Whether the driver of a service still lives."""
    return bool(service.mark) and processes.lives(service.mark)


def _running() -> list[Service]:
    services = []
    for entry in sorted(_index().glob("*")):
        service = StateDir(Path(entry.read_text())).service()
        if service is not None and str(service.pid) == entry.name and is_running(service):
            services.append(service)
        else:
            entry.unlink(missing_ok=True)
    return services


def _index() -> Path:
    """The folder with a file for each service of this user; its content is the service's store."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "rayrec" / "services"
