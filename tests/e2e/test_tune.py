"""A search over a small shop: killed, gone on with, and what it leaves."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import optuna
import optuna_dashboard
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from app.artifact import open_artifact
from app.data.dataset import Dataset
from app.data.demo_shop.generate import generate
from app.errors import DataError, MachineError, RecipeError
from app.files import locked
from app.recipe import Recipe
from app.recipe_toml import load
from app.training.on_ray import with_copied_model
from app.training.train import checkpoint_key
from tests.conftest import REPOSITORY
from tuning.ship import ship
from tuning.trials.dirs import SearchDirs
from tuning.trials.trial import run_trial
from tuning.tune import opened, search

TRIALS, KILLED_AFTER = 5, 2
CHANGES = [
    "model.name=mlp",
    "train.epochs=1",
    "train.refit=true",
    "train.batch_size=512",
    "model.width=8",
    "tune.parallel=2",
]
BUDGET = "p95_ms<=10000, mb<=1000"


def command(recipe: Path, out: Path) -> list[str]:
    sets = [word for change in CHANGES for word in ("--set", change)]
    head = [sys.executable, "-m", "app", "tune", str(recipe), "--out", str(out), "--json"]
    return [*head, "--trials", str(TRIALS), "--budget", BUDGET, *sets]


def finished(out: Path) -> list[FrozenTrial]:
    journal = out / "journal.log"
    if not journal.exists():
        return []
    try:
        study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    except (KeyError, ValueError):  # not written yet
        return []
    return study.get_trials(states=(TrialState.COMPLETE,))


def start(recipe: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(command(recipe, out), cwd=REPOSITORY, stdout=stream, stderr=stream)


class Searched:
    """A search that was killed after some trials and run again."""

    def __init__(self, folder: Path) -> None:
        generate(folder / "shop", users=120, items=60, events=4000, seed=3)
        self.recipe, self.out = folder / "shop" / "recipe.toml", folder / "tune"
        killed = start(self.recipe, self.out, folder / "first.log")
        while len(finished(self.out)) < KILLED_AFTER and killed.poll() is None:
            time.sleep(0.2)
        self.before = finished(self.out)
        killed.send_signal(signal.SIGKILL)
        self.killed = killed.wait()
        done = subprocess.run(command(self.recipe, self.out), cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, (folder / "first.log").read_text() + done.stderr
        self.printed: dict[str, Any] = json.loads(done.stdout)
        self.stderr = done.stderr


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return Searched(tmp_path_factory.mktemp("search"))


def test_a_killed_search_goes_on_and_repeats_nothing(searched: Searched) -> None:
    assert searched.killed == -signal.SIGKILL
    assert KILLED_AFTER <= len(searched.before) < TRIALS
    trials = finished(searched.out)
    assert len(trials) == TRIALS == searched.printed["trials"]
    assert [t.params for t in trials[: len(searched.before)]] == [t.params for t in searched.before]
    assert len({json.dumps(t.params, sort_keys=True) for t in trials}) == TRIALS
    assert f"{len(searched.before)} of {TRIALS} trials are in the journal" in searched.stderr


def test_trials_reuse_checkpoints(searched: Searched) -> None:
    reused = sum(t.user_attrs["reused"] for t in finished(searched.out))
    assert reused == searched.printed["reused"] >= TRIALS // 3
    checkpoints = list((searched.out / "checkpoints").glob("*/manifest.json"))
    assert len(checkpoints) <= TRIALS - reused + 2  # two more may have been cut off by the kill
    assert open_artifact(checkpoints[0].parent, "checkpoint").kind == "checkpoint"


def test_the_front_is_written(searched: Searched) -> None:
    rows = list(csv.DictReader((searched.out / "front.csv").open()))
    named = [*(str(p["trial"]) for p in searched.printed["front"]), "popularity", "item_knn"]
    assert [row["trial"] for row in rows] == named
    assert (searched.out / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert list((searched.out / "trials").glob("*")) == []


def test_baselines_stand_beside_the_front(searched: Searched) -> None:
    """They are measured on the users of the trials: a trial of the same model gives the same figure."""
    baselines = searched.printed["baselines"]
    recipe = load(searched.recipe, CHANGES)
    trial = run_trial({"model.name": "item_knn"}, recipe, SearchDirs(searched.out))
    assert trial["quality"] == pytest.approx(baselines["item_knn"], abs=1e-6)
    assert 0 < baselines["popularity"] < baselines["item_knn"]
    best = searched.printed["best"]["ndcg@10"]
    assert searched.printed["behind"] == [name for name, quality in baselines.items() if quality > best]
    assert all(name in searched.stderr for name in baselines)


def test_a_search_ends_with_the_next_command(searched: Searched) -> None:
    words = shlex.split(searched.printed["next"])
    assert words[:2] == ["rayrec", "run"]
    assert load(words[2]).model.name == "mlp"


def test_the_choice_is_a_recipe(searched: Searched) -> None:
    best = searched.printed["best"]
    chosen = load(searched.out / "best.toml")
    assert searched.printed["within_budget"] is True
    assert best["ndcg@10"] == max(p["ndcg@10"] for p in searched.printed["front"])
    assert chosen.compress.rows == best["settings"]["compress.rows"]
    assert chosen.data.events == load(searched.recipe).data.events
    assert chosen.train.refit is True
    assert list(searched.out.rglob("*refit*")) == []  # a trial never refits


def test_one_line_a_trial(searched: Searched) -> None:
    lines = [line for line in searched.stderr.splitlines() if line.startswith("trial ")]
    assert len(lines) == TRIALS - len(searched.before)
    assert all("p95" in line and "MB" in line for line in lines)


def test_enough_trials_run_none(searched: Searched, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = (searched.out / "journal.log").read_bytes()
    monkeypatch.setattr("tuning.tune.validate", None)  # nor are the baselines measured again
    again = search(load(searched.recipe, CHANGES), searched.out, trials=3, budget="p95_ms<=0.000001")
    assert again.baselines == pytest.approx(searched.printed["baselines"], abs=1e-6)
    assert len(again.trials) == TRIALS
    assert not again.within_budget
    assert (searched.out / "journal.log").read_bytes() == journal


def test_one_search_a_folder(searched: Searched) -> None:
    with locked(searched.out / "tune.lock"), pytest.raises(MachineError, match="another search"):
        search(load(searched.recipe), searched.out, trials=3)


def test_a_bad_budget_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown figure"):
        search(Recipe(), tmp_path / "out", trials=3, budget="seconds<=3")
    assert not (tmp_path / "out").exists()


def test_trials_that_all_fail_end_the_search(searched: Searched, ray_local: None, tmp_path: Path) -> None:
    recipe = load(searched.recipe, [*CHANGES, "train.metric=luck@10"])
    shutil.copytree(searched.out / "dataset", tmp_path / "out" / "dataset")  # spares preparing it
    with pytest.raises((DataError, RecipeError), match="luck@10"):
        search(recipe, tmp_path / "out", trials=6)
    assert finished(tmp_path / "out") == []


def test_a_model_of_the_users_own_is_searched_like_any_other(searched: Searched, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text((REPOSITORY / "app/models/two_tower.py").read_text())
    recipe = load(searched.recipe, [*CHANGES, f"model.file={str(file)!r}"])
    shared = with_copied_model(recipe, tmp_path)
    file.unlink()  # as on another machine
    result = run_trial({"model.width": 4}, shared, SearchDirs(searched.out))
    assert result.get("failed") is None
    assert result["quality"] > 0


def test_a_trial_that_fails_says_why_and_leaves_nothing(searched: Searched) -> None:
    recipe = load(searched.recipe, CHANGES)
    result = run_trial({"model.hidden": []}, recipe, SearchDirs(searched.out))
    assert "hidden" in result["failed"]
    assert result["by_user"] is True
    assert list((searched.out / "trials").iterdir()) == []


def test_trials_are_added_to_those_that_have_finished(searched: Searched, ray_local: None) -> None:
    more = search(load(searched.recipe, CHANGES), searched.out, trials=3, add_trials=1)
    assert len(more.trials) == TRIALS + 1 == len(finished(searched.out))
    assert (searched.out / "front.html").stat().st_size and "chosen" in (
        searched.out / "report.md"
    ).read_text()


def test_what_is_shipped_keeps_the_budget_as_it_is_served(searched: Searched, ray_local: None) -> None:
    recipe = load(searched.recipe, [change for change in CHANGES if "refit" not in change])
    front = opened(recipe, searched.out, BUDGET)
    shipped = ship(front)
    assert shipped["trial"] == front.best.trial
    bundle = open_artifact(Path(shipped["bundle"]), "bundle")
    assert bundle.bytes > front.best.bytes, "an index and histories go with it"
    assert shipped["mb"] == pytest.approx(bundle.bytes / 1e6, abs=1e-6)
    assert shipped["p95_ms"] > 0 and shipped["figures"]["ndcg@10"] > 0
    chosen = load(searched.out / "best.toml")
    assert chosen.train.valid_too and chosen.compress.rows == front.best.settings["compress.rows"]
    trained = SearchDirs(searched.out).checkpoint(checkpoint_key(chosen, Dataset.open(front.out / "dataset")))
    assert open_artifact(searched.out / "chosen").digest == open_artifact(trained).digest, "trained once"
    assert not (searched.out / "measured").exists()


def test_a_budget_that_serving_exceeds_is_refused_with_the_nearest_trials(
    searched: Searched, ray_local: None
) -> None:
    smallest = min(point["mb"] for point in searched.printed["front"])
    front = opened(load(searched.recipe, CHANGES), searched.out, f"mb<={1.0001 * smallest}")
    assert front.within_budget, "as a trial measures it"
    with pytest.raises(
        RecipeError, match=r"once it is served; nearest: trial \d+ \(ndcg@10 0\.\d+"
    ) as caught:
        ship(front)
    assert caught.value.where == "budget"


def test_nothing_to_explain_where_no_trial_finished(searched: Searched, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no trial of this recipe has finished here"):
        opened(load(searched.recipe, CHANGES), tmp_path)


def test_a_deployment_needs_a_service_before_anything_runs(searched: Searched, tmp_path: Path) -> None:
    asked = [*command(searched.recipe, tmp_path / "out"), "--deploy", "--port", "1"]
    done = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "no service runs at port 1" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_trial_of_several_workers_is_a_job_of_ray_train(searched: Searched, ray_local: None) -> None:
    recipe = load(searched.recipe, [*CHANGES, "train.workers=2"])
    result = run_trial({"model.width": 4}, recipe, SearchDirs(searched.out))
    assert (result.get("failed"), result["reused"], result["stopped"]) == (None, False, 0)
    checkpoint = open_artifact(SearchDirs(searched.out).checkpoint(result["checkpoint"]), "checkpoint")
    assert checkpoint.settings["train"]["workers"] == 2
    assert result["quality"] > 0


def test_optunas_dashboard_opens_the_journal(searched: Searched) -> None:
    """Of a copy, because a dashboard that looks writes what it has seen."""
    journal = shutil.copy(searched.out / "journal.log", searched.out / "journal-copy.log")
    dashboard = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(str(journal))))
    client = httpx.Client(transport=httpx.WSGITransport(app=dashboard), base_url="http://dashboard")
    (study,) = client.get("/api/studies").raise_for_status().json()["study_summaries"]
    detail = client.get(f"/api/studies/{study['study_id']}").raise_for_status().json()
    assert detail["name"] == searched.printed["study"]
    assert detail["directions"] == ["maximize", "minimize", "minimize"]
    assert len(detail["trials"]) >= TRIALS
