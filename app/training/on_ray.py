"""Runs the training loop in workers of Ray Train."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from app import errors
from app.data.dataset import Dataset
from app.errors import MachineError, RayRecError, disk_errors
from app.files import write_atomically
from app.models.discovery import MODEL_FILE, model_class, source_of
from app.ray.session import ray_session
from app.recipe import Recipe, parse
from app.training.hosts import RayHost
from app.training.loop import Loop
from app.training.task import Task, Weights

ERROR = "error.json"


def train_on_ray(task: Task, folder: Path) -> Path:
    """Train over `train.workers` workers; returns the last checkpoint's folder.

    Dead workers are replaced and go on from the last checkpoint, `train.max_failures` times.
    With several machines, `folder` and the data set must lie where all of them see them.

    Raises:
        RayRecError: what a worker raised.
        MachineError: too few CPUs or GPUs, or the workers died too often.
    """
    (folder / ERROR).unlink(missing_ok=True)
    with ray_session():
        outcome = _in_a_thread(_trainer(task, folder).fit)
    if (folder / ERROR).exists():
        raise _read_error(folder / ERROR)
    if isinstance(outcome, BaseException):
        raise _translate(outcome)
    return Path(outcome.checkpoint.path)


def _trainer(task: Task, folder: Path) -> Any:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings = task.recipe.train
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    _refuse_too_few(resources, settings.workers, gpu=settings.gpu)
    return TorchTrainer(
        work,
        train_loop_config={
            "recipe": with_copied_model(task.recipe, folder).model_dump(mode="json"),
            "dataset": str(task.dataset.path.absolute()),
            "folder": str(folder),
            "epochs": task.epochs,
            "objective": task.objective,
            "conversion": task.conversion,
            "weights": _kept(task.weights, folder),
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpu,
            resources_per_worker={"CPU": max(1, min(2, int(resources["CPU"]) // settings.workers))},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )


def with_copied_model(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a model file of the user's copied into the run folder, where all workers see it."""
    source = source_of(model_class(recipe.model.source))
    if source is None:
        return recipe
    copy = folder / MODEL_FILE
    copy.write_bytes(source)
    return recipe.override({"model.file": str(copy)})


def _kept(weights: Weights | None, folder: Path) -> str | None:
    """The file in the run folder, where all workers see it, that holds the weights to begin with."""
    if weights is None:
        return None
    path = folder / "initial.safetensors"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors.items()}, path)
    return str(path)


def _refuse_too_few(resources: dict[str, float], workers: int, *, gpu: bool) -> None:
    """Raise where the cluster has fewer CPUs or GPUs than workers: Ray would wait for them for ever."""
    for kind in ("CPU", "GPU") if gpu else ("CPU",):
        if resources.get(kind, 0) < workers:
            raise MachineError(
                f"{workers} workers need as many {kind}s and there are {resources.get(kind, 0):.0f}",
                where="train.workers",
                remedy="lower train.workers" + (" or set train.gpu = false" if kind == "GPU" else ""),
            )


def work(config: dict[str, Any]) -> None:
    """Train as one worker: the training function of Ray Train.

    An error of ours would come again in every new worker. So it is left in the run folder for
    the driver, and a worker that sees it there stops. Where others wait for this worker, it fails,
    which makes Ray Train end them; its replacement then sees the error.
    """
    folder = Path(config["folder"])
    if (folder / ERROR).exists():
        return
    recipe = parse(config["recipe"], "recipe")
    try:
        dataset = Dataset.open(Path(config["dataset"]), verify=False)
        weights = Weights.of(Path(config["weights"])) if config["weights"] else None
        task = Task(recipe, dataset, config["epochs"], config["objective"], weights, config["conversion"])
        with disk_errors(str(folder)):
            Loop(task, RayHost(folder)).run()
    except RayRecError as error:
        _write_error(folder / ERROR, error)
        if recipe.train.workers > 1:
            raise


def _write_error(path: Path, error: RayRecError) -> None:
    content = [type(error).__name__, error.what, error.where, error.remedy]
    write_atomically(path, json.dumps(content).encode())


def _read_error(path: Path) -> RayRecError:
    kind, what, where, remedy = json.loads(path.read_bytes())
    path.unlink()
    error: RayRecError = getattr(errors, kind)(what, where=where, remedy=remedy)
    return error


def _in_a_thread(fit: Any) -> Any:
    """Run `fit` outside the main thread; returns its result, or the exception that it raised.

    In the main thread Ray Train takes Ctrl-C for itself and ends the program with code 0.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(fit())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    return outcome[0]


def _translate(error: BaseException) -> BaseException:
    """A failure of Ray Train as an error of ours with a remedy; any other exception as it is."""
    import ray.train

    if not isinstance(error, ray.train.TrainingFailedError):
        return error
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    cause = getattr(cause, "_base_exc", cause)
    last = (str(cause).strip().splitlines() or [type(cause).__name__])[-1].strip()
    if "Actor" in type(cause).__name__ or "Memory" in type(cause).__name__:
        return MachineError(
            f"the training workers died too often; the last: {last[:200]}",
            where="train",
            remedy="look for a lack of memory (a smaller train.batch_size helps); the same command goes on "
            "from the last checkpoint",
        )
    return RayRecError(f"training failed: {type(cause).__name__}: {last[:300]}", where="train")
