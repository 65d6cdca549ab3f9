"""What a job is given: absolute paths, its result's place, its variables."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil
import pytest

from cluster import environment, state
from cluster.__main__ import main
from cluster.errors import ClusterError
from cluster.jobs import absolute, job_variables, last_object


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYREC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_files_and_results_get_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").touch()
    given = ["run", "shop.toml", "--set", "train.epochs=3", "--out=results"]
    recipe, out = str(tmp_path / "shop.toml"), str(tmp_path / "results")
    assert absolute(given, tmp_path) == ["run", recipe, "--set", "train.epochs=3", f"--out={out}", "--json"]
    assert absolute(["run", "shop.toml", "--out", "results", "--json"], tmp_path) == [
        *("run", recipe, "--out", out, "--json")
    ]


def test_a_run_has_a_place_for_its_results(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").touch()
    place = str(tmp_path / "runs" / "shop")
    assert absolute(["tune", "shop.toml"], tmp_path)[2:] == ["--out", place, "--json"]


def test_other_verbs_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "doctor").mkdir()  # a folder that is named like the verb is not meant
    assert absolute(["doctor", "--json"], tmp_path) == ["doctor", "--json"]


def test_the_job_is_told_where_the_data_sets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYREC_DATA", "data")
    monkeypatch.setenv("RAYREC_API_KEY", "secret")
    assert job_variables({"A": "1"}) == {"RAYREC_DATA": str(tmp_path / "data"), "A": "1"}
    monkeypatch.delenv("RAYREC_DATA")
    assert job_variables({}) == {}


def test_the_result_is_the_last_object_of_the_log() -> None:
    assert last_object('start\n{"a": 1}\n{"bundle": "b"}\nended\n') == '{"bundle": "b"}'
    assert last_object("{broken}\n{'a': 1}\n") is None


def test_the_token_is_ours_alone(home: Path) -> None:
    path = state.token()
    assert path.parent == home
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert len(path.read_text()) == 64
    assert state.token().read_text() == path.read_text()
    assert environment.of_client()["RAY_AUTH_MODE"] == "token"


def test_a_node_is_told_apart_from_a_later_process_with_its_pid() -> None:
    created = psutil.Process().create_time()
    assert state.process(os.getpid(), created)
    assert state.process(os.getpid(), created - 60) is None


def test_a_record_survives_and_a_damaged_one_is_named(home: Path) -> None:
    node = state.Node(1, 2.0, "127.0.0.1:1", "http://127.0.0.1:2", "/tmp/x", [(3, 4.0)])
    state.save(node)
    assert state.recorded() == node
    (home / "cluster.json").write_text('{"pid": 1')
    with pytest.raises(ClusterError, match="damaged"):
        state.recorded()


def test_without_a_node_every_verb_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["down"], ["status"], ["submit", "--", "run", "x.toml"]):
        assert main(verb) == 1
        assert "no cluster is up" in capsys.readouterr().err


def test_a_variable_needs_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--env", "NAME", "--", "doctor"]) == 1
    assert "write NAME=VALUE" in capsys.readouterr().err
