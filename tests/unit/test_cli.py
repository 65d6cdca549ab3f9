"""The command line: exit codes, one JSON object, messages instead of tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import app.cli
import app.serving.rollout.discovery
import app.serving.service
import app.terminal.doctor
from app.serving.rollout.state import Command, DesiredState, Service, Version
from app.serving.rollout.state_dir import StateDir


def rayrec(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a verb run in this process."""
    before, sys.argv = sys.argv, ["rayrec", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as caught:
            app.cli.main()
    finally:
        sys.argv = before
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return int(caught.value.code or 0), printed.out, printed.err


VERBS = ["init", "check", "prepare", "train", "evaluate", "compress", "export"]
VERBS += ["tune", "compare", "serve", "run", "rank", "demo", "bench", "doctor"]


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rayrec(capsys, "--help")
    assert code == 0
    assert [verb for verb in VERBS if f"  {verb}" not in out] == []


def test_init_writes_a_recipe_with_every_default(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = rayrec(capsys, "init", tmp_path / "shop", "--json")
    assert code == 0
    text = Path(json.loads(out)["recipe"]).read_text()
    assert tomllib.loads(text)["data"]["duplicates"] == "exact"
    assert "# batch_size = 0\n" in text, "keys that a model may settle stand in comments"
    code, _, err = rayrec(capsys, "init", tmp_path / "shop")
    assert code == 1
    assert "there is a recipe already" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.toml"], "no such file"),
        (["run"], "Missing argument"),
        (["bogus"], "No such command"),
        (["run", "x.toml", "--bogus"], "No such option"),
        (["rank", "absent", "--user", "u"], "no such folder"),
        (["serve", "absent"], "no such folder"),
        (["bench", "absent"], "no such folder"),
        (["serve", "bogus://bucket/bundle"], "check the address"),
        (["serve", "absent", "--model", "news"], "NAME=BUNDLE"),
        (["serve", "absent", "--model", "a/b=c"], "serve.models"),
        (["serve", "absent", "--set", "serve.cpus=0"], "serve.cpus"),
    ],
)
def test_mistakes_exit_1_with_one_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = rayrec(capsys, *arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_json_holds_the_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rayrec(capsys, "run", "absent.toml", "--json")
    assert code == 1
    assert json.loads(out)["error"]["what"] == "no such file"


def test_interrupt_exits_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.terminal.doctor, "doctor", interrupted)
    code, _, err = rayrec(capsys, "doctor")
    assert code == 130
    assert "interrupted" in err


def test_ctrl_c_ends_a_service_with_a_message_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.serving.service, "serve", interrupted)
    code, _, err = rayrec(capsys, "serve", "bundle")
    assert code == 130
    assert err == "interrupted - the service has ended; every event that was acknowledged is stored\n"


def test_a_fault_of_ours_exits_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(app.terminal.doctor, "doctor", broken)
    code, out, err = rayrec(capsys, "doctor", "--json")
    assert code == 2
    assert "ZeroDivisionError: by zero" in err
    assert "error" in json.loads(out)


@pytest.mark.parametrize("options", [[], ["--verbose"]])
def test_warnings_of_libraries_are_for_those_who_ask(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "own.py").write_text("import numpy as np\nnp.array([1.0]) / np.array([0.0])\n")
    (tmp_path / "r.toml").write_text('[model]\nfile = "own.py"\n')
    done = subprocess.run(
        [sys.executable, "-m", "app", "check", tmp_path / "r.toml", *options],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "own.py" in done.stderr  # it was imported, and has no model
    assert ("RuntimeWarning: divide by zero" in done.stderr) == bool(options)


def test_doctor_looks_at_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rayrec(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["packages"]["ray"].startswith("2.60")
    assert facts["memory_free_gib"] > 0
    code, out, _ = rayrec(capsys, "doctor")
    assert "packages.torch" in out


def test_status_is_a_table_of_replicas_and_versions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = Service("http://127.0.0.1:8000", str(tmp_path), pid=1, mark="", max_replicas=2)
    monkeypatch.setattr(app.serving.rollout.discovery, "find", lambda store, port: service)
    state_dir = StateDir(tmp_path)
    version = Version(label="1a2b", digest="1a2b", bundle="runs/shop/bundle", share=1.0)
    state_dir.publish(DesiredState([version]))
    state_dir.submit(Command("rollback"))
    code, out, _ = rayrec(capsys, "status")
    assert code == 0
    assert "0 (wanted: as the load asks), 0 calls ongoing" in out
    assert "100 % of the users, 0.0 requests/s, p95 0.0 ms, 0 failed, ready on 0" in " ".join(out.split())
    assert "1 waiting" in out


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_ends_a_run_like_ctrl_c(name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    program = (
        "import os, signal, sys, app.cli, app.pipeline\n"
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"  # `nohup` ignores it
        f"app.pipeline.run = lambda *_, **__: os.kill(os.getpid(), signal.{name})\n"
        f"sys.argv = ['rayrec', 'run', {str(tmp_path / 'recipe.toml')!r}]\n"
        "app.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
