"""The training loop: the same in this process and in each worker of Ray Train."""

from __future__ import annotations

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

TELL_EVERY_S = 1.0
AGREE_EVERY = 32  # steps between looks at the clock for a checkpoint
LOWER_IS_BETTER = ("log_loss", "calibration_error")


class Loop:
    """One run of training, from its last checkpoint if it has one."""

    def __init__(self, recipe: Recipe, dataset: Dataset, host: Host) -> None:
        self.recipe, self.dataset, self.host, self.settings = recipe, dataset, host, recipe.train
        torch.manual_seed(recipe.seed)
        self.model = build_model(recipe.model.name, recipe.model.hyperparameters, dataset).to(host.device)
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
        self.state = State(
            self.model, self.optimizers, TrainingProgress(resumed_from=0 if restarted(host) else None)
        )
        self._begun = 0.0
        if latest := host.latest():
            # Only worker 0's random state is kept; the others go on with a fresh one.
            self.state.load(latest, random=host.rank == 0)
            self.place.resumed_from = self.place.epoch
        host.tell(event="start", resumed_from=self.place.resumed_from, **self._done())

    @property
    def place(self) -> TrainingProgress:
        """How far the run is."""
        return self.state.place

    def run(self) -> None:
        """Train until the last epoch, or until validation has got no better for long enough."""
        while not self.place.finished:
            self._epoch()

    def _epoch(self) -> None:
        place = self.place
        if place.step == 0:
            seeds = np.random.SeedSequence([self.recipe.seed, place.epoch, self.host.rank])
            torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.model.train()
        self._steps()
        figures = self._validate() if self.host.rank == 0 else {}
        mean = place.loss / self.sampler.steps
        if not np.isfinite(mean):
            raise diverged(place.epoch + 1, mean)
        place.epoch, place.step, place.loss = place.epoch + 1, 0, 0.0
        self._judge(figures)
        line = {"epoch": place.epoch, "loss": mean, "seconds": round(place.seconds, 3), **figures}
        place.curve.append(line)
        # Told before the report, whose receiver may end this process for good.
        self.host.tell(event="epoch", rate=self._rate(), metric=self.settings.metric, **line)
        self.host.report(line, self.state.save, epoch_ends=True)

    def _steps(self) -> None:
        place, limit = self.place, self.settings.checkpoint_minutes * 60
        told = saved = self._begun = time.perf_counter()
        total = torch.zeros((), device=self.host.device)
        batches = self.sampler.epoch(place.epoch, place.step)
        # On a CPU the thread that makes batches ahead takes a core from torch: it halved the rate.
        for batch in prefetch(batches) if self.host.device.type == "cuda" else batches:
            total += self._step(batch)
            place.step += 1
            place.samples += batch.item.numel() * self.host.world
            now = time.perf_counter()
            if now - told > TELL_EVERY_S:
                told = now
                self._count_time()
                self.host.tell(event="step", **self._done(), rate=self._rate())
            if place.step % AGREE_EVERY == 0 and self.host.agree(now - saved > limit):
                self._count_time()
                place.loss += float(total)
                total.zero_()
                self.host.report({"epoch": place.epoch}, self.state.save, epoch_ends=False)
                saved = self._begun = time.perf_counter()
        place.loss += float(total)
        self._count_time()

    def _step(self, batch: Batch) -> Tensor:
        place, settings, device = self.place, self.settings, self.host.device
        self.optimizers.zero()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = self.model.loss(batch.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        average(self.optimizers.parameters, self.host.world)
        self.optimizers.step(place.epoch * self.sampler.steps + place.step)
        return loss.detach()

    def _validate(self) -> dict[str, float]:
        """Figures on the valid part; none where it asks for nothing."""
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
        return figures

    def _judge(self, figures: dict[str, float]) -> None:
        """Keep the weights if they are the best yet, as worker 0 sees it, and decide whether to stop."""
        place, settings = self.place, self.settings
        found = figures.get(settings.metric)
        sign = -1 if settings.metric in LOWER_IS_BETTER else 1
        better = found is None or place.best is None or sign * found > sign * place.best
        if self.host.agree(better):
            place.best, place.best_epoch = found, place.epoch
            self.state.keep_best()
        waited = place.epoch - place.best_epoch
        place.finished = place.epoch >= settings.epochs or 0 < settings.patience <= waited

    def _done(self) -> dict[str, int]:
        """Steps done, and steps an epoch."""
        steps = self.sampler.steps
        return {"done": self.place.epoch * steps + self.place.step, "steps": steps}

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.place.seconds += now - self._begun
        self._begun = now

    def _rate(self) -> float:
        """Samples a second of training, validation and checkpoints apart."""
        return self.place.samples / max(self.place.seconds, 1e-9)


def uses_history(model: Model) -> bool:
    """Whether the model looks at histories; one that does not is spared their look-up."""
    with torch.no_grad():
        row = model.history_rows(torch.zeros(1, dtype=torch.int64, device=model.log_popularity.device))
    return row.shape[-1] > 0


def diverged(epoch: int, loss: float) -> UserError:
    """The error of a loss that is no number."""
    return RecipeError(
        f"the loss of epoch {epoch} is {loss}",
        where="train",
        remedy="lower learning_rate and table_learning_rate, or set clip_norm",
    )
