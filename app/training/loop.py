"""The training loop: the same in this process and in each worker of Ray Train."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from app.errors import RecipeError, UserError
from app.training.batches import AnyBatch, batches_of
from app.training.batches.prefetch import prefetch
from app.training.gradients import average
from app.training.hosts import Host, restarted
from app.training.optimizers import Optimizers
from app.training.state import BEST, State, TrainingProgress
from app.training.task import Task
from app.training.validation import validation_figures

LOG_EVERY_S = 1.0
STEPS_BETWEEN_CLOCKS = 32  # after so many steps the workers ask worker 0 whether a checkpoint is due


class Loop:
    """One run of training, from its last checkpoint if it has one.

    The learning rates follow the schedule of train.epochs even where the task stops before, so that its
    epochs are like the first ones of a longer run. Weights that are given to begin with count as epoch 0:
    where no epoch is better on validation, they are the best.

    Args:
        limit_s: seconds of training, validation apart, after which the epoch under way is the last and
            ends at once; None: no limit.
    """

    def __init__(self, task: Task, host: Host, limit_s: float | None = None) -> None:
        self.task, self.host, self.limit_s = task, host, limit_s
        self.recipe, self.settings = task.recipe, task.recipe.train
        self.epochs = task.epochs or self.settings.epochs
        torch.manual_seed(self.recipe.seed)
        self.model = task.new_model().to(host.device)
        self.batches = batches_of(self.model, task.dataset, self.recipe, rank=host.rank, world=host.world)
        self.optimizers = Optimizers(self.model, self.settings, self.settings.epochs * self.batches.steps)
        progress = TrainingProgress(resumed_from=0 if restarted(host) else None)
        self.state = State(self.model, self.optimizers, progress)
        self._counted_until = 0.0
        self._losses: list[Tensor] = []  # of the last steps
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
        """Train until the last epoch, or until validation has got no better for long enough.

        Raises:
            RecipeError: the loss or a weight is NaN or infinite; the last checkpoint is from before.
        """
        if self.task.weights and not (self.progress.epoch or self.progress.step):
            self._begin()
        while not self.progress.finished:
            self._epoch()

    def _begin(self) -> None:
        """Measure the weights that were given, which are the best as yet."""
        progress = self.progress
        figures = self._validate()
        progress.initial = progress.best = figures.get(self.settings.metric)
        self.state.keep_best()

    def _epoch(self) -> None:
        progress = self.progress
        if progress.step == 0:
            seeds = np.random.SeedSequence([self.recipe.seed, progress.epoch, self.host.rank])
            torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.model.train()
        self._steps()
        self._refuse_broken_weights()
        figures = self._validate()
        mean = progress.loss / max(1, progress.step)
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
        for batch in self._waited_for(self.batches.epoch(progress.epoch, progress.step)):
            self._losses.append(self._step(batch))
            progress.step += 1
            progress.samples += batch.samples * self.host.world
            self._read_losses(at_least=1 if self.host.device.type == "cpu" else STEPS_BETWEEN_CLOCKS)
            now = time.perf_counter()
            if now - logged > LOG_EVERY_S:
                logged = now
                self._count_time()
                if self._time_is_up():
                    break
                self.host.log(event="step", **self._done(), rate=self._rate())
            if progress.step % STEPS_BETWEEN_CLOCKS == 0 and self.host.broadcast(now - saved > limit):
                self._count_time()
                self._read_losses()
                self._refuse_broken_weights()
                self.host.checkpoint({"epoch": progress.epoch}, self.state.save, epoch_ends=False)
                saved = self._counted_until = time.perf_counter()
        self._read_losses()
        self._count_time()

    def _waited_for(self, batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
        """The batches; the time until each one comes counts as waiting.

        On a CPU they are not made ahead: the thread that did took a core from torch and halved the rate.
        """
        if self.host.device.type == "cuda":  # from pinned memory, batches are copied while the GPU computes
            coming = prefetch(batch.each(Tensor.pin_memory) for batch in batches)
        else:
            coming = batches
        while True:
            start = time.perf_counter()
            batch = next(coming, None)
            self.progress.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _step(self, batch: AnyBatch) -> Tensor:
        progress, settings, device = self.progress, self.settings, self.host.device
        self.optimizers.zero()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            batch = batch.to(device)
            objective = self.task.objective
            loss = self.model.loss(batch) if objective is None else objective(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        average(self.optimizers.parameters, self.host.world)
        number = progress.epoch * self.batches.steps + progress.step
        self.optimizers.step(number)
        if self.task.conversion:
            self.task.conversion.after_step(self.model, number + 1)
        return loss.detach()

    def _read_losses(self, at_least: int = 1) -> None:
        """Add the losses of the last steps to that of the epoch, where so many are waiting.

        Reading one waits for its step to end, which on a GPU would leave it idle after every step.
        """
        if len(self._losses) < at_least:
            return
        losses = torch.stack(self._losses).tolist()
        self._losses.clear()
        for step, loss in enumerate(losses, self.progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of epoch {self.progress.epoch + 1} is {loss} at step {step}")
            self.progress.loss += loss

    def _refuse_broken_weights(self) -> None:
        """Raise where a weight is no number, before a checkpoint holds it: the next loss would be none."""
        for name, weight in self.model.named_parameters():
            if not weight.detach().sum().isfinite():
                progress = self.progress
                where = f"epoch {progress.epoch + 1} at step {progress.step}"
                raise self._diverged(f"a weight of {name} is no finite number in {where}")

    def _diverged(self, what: str) -> UserError:
        latest = self.host.latest()
        kept = f"; the best weights before are in {latest / BEST}" if latest else ""
        remedy = "lower learning_rate and table_learning_rate, or set clip_norm"
        return RecipeError(what, where="train", remedy=remedy + kept)

    def _validate(self) -> dict[str, float]:
        """Figures on the validation part; worker 0 alone makes them."""
        if self.host.rank:
            return {}
        return validation_figures(self.recipe, self.task.dataset, self.model, self.progress)

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
        patient = waited < settings.patience or waited * self.batches.steps < settings.patience_steps
        stops = settings.patience > 0 and not patient
        progress.finished = progress.epoch >= self.epochs or stops or self._time_is_up()

    def _time_is_up(self) -> bool:
        return self.limit_s is not None and self.progress.seconds > self.limit_s

    def _done(self) -> dict[str, int]:
        """Steps done, and steps an epoch."""
        steps = self.batches.steps
        return {"done": self.progress.epoch * steps + self.progress.step, "steps": steps}

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._counted_until
        self._counted_until = now

    def _rate(self) -> float:
        """Samples a second of training, without the time of validation and checkpoints."""
        return self.progress.samples / max(self.progress.seconds, 1e-9)
