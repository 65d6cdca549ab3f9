"""What the verbs do: they wait for the result of a command, but not for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from app.errors import ArtifactError, MachineError, RecipeError
from app.serving.rollout import admin
from app.serving.rollout.state import Command, CommandResult, DesiredState, Service, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.rollout.status import status

RUNNING = Version("v1", "/data/a", "a", 0.95)
TRIAL = Version("v2", "/data/b", "b", 0.05)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """One whose controller does nothing."""
    monkeypatch.setattr(admin, "is_running", lambda _: True)
    for name in ("PATIENCE_S", "FETCH_S", "LOOK_S"):
        monkeypatch.setattr(admin, name, 0.01)
    StateDir(tmp_path).publish(DesiredState([RUNNING]))
    return Service("http://127.0.0.1:1", str(tmp_path), os.getpid(), "", 2)


def commands(service: Service) -> list[Command]:
    return StateDir(Path(service.store)).take_commands()[0]


def test_a_command_that_nobody_takes_is_withdrawn(service: Service) -> None:
    with pytest.raises(MachineError, match=r"did not take up the command \(scale\).*rayrec status"):
        admin.scale(service, 1)
    assert commands(service) == []


def test_status_shows_commands_that_nobody_takes(service: Service) -> None:
    assert status(service)["waiting_commands"] == 0
    StateDir(Path(service.store)).submit(Command("rollback"))
    assert status(service)["waiting_commands"] == 1


def test_a_command_that_was_taken_but_has_no_result_ends_with_an_error(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "desired_state_of", lambda s: (s.take_commands(), s.desired_state())[1])
    with pytest.raises(MachineError, match=r"has not carried it out yet.*rayrec status"):
        admin.roll_back(service)


def test_a_deployment_waits_for_the_end_of_its_phase_and_no_longer(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def put_on_trial(state_dir: StateDir) -> DesiredState | None:
        looks.append(time.time())
        for command in state_dir.take_commands()[0]:
            note, ends = "waiting for requests, at least 20: 0 requests answered", time.time() + 0.2
            desired = DesiredState([RUNNING, TRIAL], "canary", command.id, note, ends)
            state_dir.publish(desired)
        return state_dir.desired_state()

    monkeypatch.setattr(admin, "desired_state_of", put_on_trial)
    with pytest.raises(MachineError, match=r"v2 is still on trial .canary: waiting for requests") as error:
        admin.deploy(service, Command("deploy", "/data/b"))
    assert "experiment --promote" in error.value.remedy and "rollback" in error.value.remedy
    assert looks[-1] - looks[0] >= 0.2


def test_a_refusal_ends_the_wait(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(state_dir: StateDir) -> DesiredState | None:
        results = [CommandResult(command.id, "refused", "why") for command in state_dir.take_commands()[0]]
        state_dir.publish(DesiredState([RUNNING], results=results))
        return state_dir.desired_state()

    monkeypatch.setattr(admin, "desired_state_of", refuse)
    with pytest.raises(ArtifactError, match=r"/data/b: refused: why - the version that was served"):
        admin.deploy(service, Command("deploy", "/data/b"))


def test_limits_of_one_deployment() -> None:
    changes = ["serve.rollout.min_agreement=-1", "serve.rollout.promote_idle=true"]
    assert admin.parse_limits(changes) == {"min_agreement": -1.0, "promote_idle": True}
    with pytest.raises(RecipeError, match=r"serve\.port"):
        admin.parse_limits(["serve.port=1"])
    with pytest.raises(RecipeError, match="min_agreement"):
        admin.parse_limits(["serve.rollout.min_agreement=7"])
