"""The training loop: the same in this process and in each worker of Ray Train."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from app.data.dataset import Dataset
from app.errors import RecipeError, UserError
from app.evaluation.evaluate import validate
from app.evaluation.scorer import ModelScorer
from app.models.base import Batch, Model
from app.models.build import build_model
from app.recipe import Recipe
from app.training.gradients import average
from app.training.hosts import Host, restarted
from app.training.optimizers import Optimizers
from app.training.sampler import Sampler, prefetch
from app.training.state import State, TrainingProgress

LOG_EVERY_S = 1.0
STEPS_BETWEEN_CLOCKS = 32  # after so many steps the workers ask worker 0 whether a checkpoint is due


class Loop:
    """One run of training, from its last checkpoint if it has one.

    Args:
        epochs: stop after so many; None: train.epochs. The learning rates follow the schedule of
            train.epochs either way, so that these epochs are like the first ones of a longer run.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, host: Host, epochs: int | None = None) -> None:
        self.recipe, self.dataset, self.host, self.settings = recipe, dataset, host, recipe.train
        self.epochs = epochs or recipe.train.epochs
        torch.manual_seed(recipe.seed)
        self.model = build_model(recipe.model.source, recipe.model.hyperparameters, dataset).to(host.device)
        self.sampler = Sampler(
            dataset,
            self.settings,
            self.model.config.loss,
            recipe.seed,
            repeats=not recipe.evaluate.exclude_seen,
            history=uses_history(self.model),
            rank=host.rank,
            world=host.world,
        )
        self.optimizers = Optimizers(self.model, self.settings, self.settings.epochs * self.sampler.steps)
        progress = TrainingProgress(resumed_from=0 if restarted(host) else None)
        self.state = State(self.model, self.optimizers, progress)
        self._counted_until = 0.0
        if latest := host.latest():
            # Only worker 0's random state is kept; the others go on with a fresh one.
            self.state.load(latest, random=host.rank == 0)
            self.progress.resumed_from = self.progress.epoch
        host.log(event="start", resumed_from=self.progress.resumed_from, **self._done())

    @property
    def progress(self) -> TrainingProgress:
        """How far the run is, and what it has measured."""
        return self.state.progress

    def run(self) -> None:
        """Train until the last epoch, or until validation has got no better for long enough."""
        while not self.progress.finished:
            self._epoch()

    def _epoch(self) -> None:
        progress = self.progress
        if progress.step == 0:
            seeds = np.random.SeedSequence([self.recipe.seed, progress.epoch, self.host.rank])
            torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.model.train()
        self._steps()
        figures = self._validate() if self.host.rank == 0 else {}
        mean = progress.loss / self.sampler.steps
        if not np.isfinite(mean):
            raise diverged(progress.epoch + 1, mean)
        progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
        self._judge(figures)
        line = {"epoch": progress.epoch, "loss": mean, "seconds": round(progress.seconds, 3), **figures}
        progress.curve.append(line)
        # Logged before the checkpoint, whose receiver may end this process for good.
        self.host.log(event="epoch", rate=self._rate(), metric=self.settings.metric, **line)
        self.host.checkpoint(line, self.state.save, epoch_ends=True)

    def _steps(self) -> None:
        progress, limit = self.progress, self.settings.checkpoint_minutes * 60
        logged = saved = self._counted_until = time.perf_counter()
        total = torch.zeros((), device=self.host.device)
        batches = self.sampler.epoch(progress.epoch, progress.step)
        # On a CPU the thread that makes batches ahead takes a core from torch: it halved the rate.
        for batch in prefetch(batches) if self.host.device.type == "cuda" else batches:
            total += self._step(batch)
            progress.step += 1
            progress.samples += batch.item.numel() * self.host.world
            now = time.perf_counter()
            if now - logged > LOG_EVERY_S:
                logged = now
                self._count_time()
                self.host.log(event="step", **self._done(), rate=self._rate())
            if progress.step % STEPS_BETWEEN_CLOCKS == 0 and self.host.broadcast(now - saved > limit):
                self._count_time()
                progress.loss += float(total)
                total.zero_()
                self.host.checkpoint({"epoch": progress.epoch}, self.state.save, epoch_ends=False)
                saved = self._counted_until = time.perf_counter()
        progress.loss += float(total)
        self._count_time()

    def _step(self, batch: Batch) -> Tensor:
        progress, settings, device = self.progress, self.settings, self.host.device
        self.optimizers.zero()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = self.model.loss(batch.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        average(self.optimizers.parameters, self.host.world)
        self.optimizers.step(progress.epoch * self.sampler.steps + progress.step)
        return loss.detach()

    def _validate(self) -> dict[str, float]:
        """The finite figures on the valid part; none where it has nothing to predict."""
        if not (self.dataset.valid.label > 0).any():
            return {}
        scorer = ModelScorer(self.model)
        figures = validate(self.recipe, self.dataset, scorer, self.settings.valid_users, self.recipe.seed)
        if self.settings.metric not in figures:
            raise RecipeError(
                f"{self.settings.metric!r} is not among the validation figures",
                where="train.metric",
                remedy=f"choose one of {', '.join(sorted(figures))}",
            )
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def _judge(self, figures: dict[str, float]) -> None:
        """Keep the weights if they are the best yet, as worker 0 sees it, and decide whether to stop.

        While no epoch has a figure, the newest weights are the best and nothing stops early.
        """
        progress, settings = self.progress, self.settings
        figure = figures.get(settings.metric)
        better = progress.best is None or (figure is not None and figure > progress.best)
        if self.host.broadcast(better):
            progress.best, progress.best_epoch = figure, progress.epoch
            self.state.keep_best()
        waited = progress.epoch - progress.best_epoch
        progress.finished = progress.epoch >= self.epochs or 0 < settings.patience <= waited

    def _done(self) -> dict[str, int]:
        """Steps done, and steps an epoch."""
        steps = self.sampler.steps
        return {"done": self.progress.epoch * steps + self.progress.step, "steps": steps}

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._counted_until
        self._counted_until = now

    def _rate(self) -> float:
        """Samples a second of training, without the time of validation and checkpoints."""
        return self.progress.samples / max(self.progress.seconds, 1e-9)


def uses_history(model: Model) -> bool:
    """Whether the model reads histories; where it does not, their look-up is left out."""
    with torch.no_grad():
        row = model.history_rows(torch.zeros(1, dtype=torch.int64, device=model.log_popularity.device))
    return row.shape[-1] > 0


def diverged(epoch: int, loss: float) -> UserError:
    """The error to raise when the loss is not a finite number."""
    return RecipeError(
        f"the loss of epoch {epoch} is {loss}",
        where="train",
        remedy="lower learning_rate and table_learning_rate, or set clip_norm",
    )
