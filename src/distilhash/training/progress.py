"""What a person sees while a loop runs: rate, time left, loss; and what metrics.jsonl keeps of it."""

from __future__ import annotations

import time

import torch

from distilhash.training.optim import Optimizers
from distilhash.training.run import RunDirectory

SAY_SECONDS = 5.0


class Progress:
    """Counts the steps of one loop. Its ``state`` is part of the training state, so a resumed curve has no seam."""

    def __init__(self, run: RunDirectory, stage: str, epochs: int, steps_per_epoch: int, images_per_step: int) -> None:
        self.run, self.stage = run, stage
        self.epochs, self.steps_per_epoch, self.images_per_step = epochs, steps_per_epoch, images_per_step
        self.state = torch.zeros(2, dtype=torch.float64)  # sum of losses and steps of the epoch so far
        self._began = self._said = time.monotonic()
        self._since = 0  # steps since this process began

    def step(self, step: int, loss: float) -> bool:
        """Count a finished step (1 is the first) and its loss; True where it ends an epoch."""
        self.state += torch.tensor([loss, 1.0], dtype=torch.float64)
        self._since += 1
        now = time.monotonic()
        if now - self._said > SAY_SECONDS:
            self._said = now
            self.run.say(self._line(step))
        return step % self.steps_per_epoch == 0

    def epoch(self, step: int, measured: dict[str, float]) -> None:
        """Say and record the end of an epoch, with what was measured on validation images."""
        shown = "".join(f"  {name} {value:.3f}" for name, value in measured.items())
        self.run.say(self._line(step) + shown)
        self.run.record(step, epoch=step // self.steps_per_epoch, loss=self._mean(), **measured)
        self.state.zero_()
        self._said = time.monotonic()

    def restore(self, optimizers: Optimizers) -> int:
        """Put the last saved state back and return its step; 0 where there is none."""
        tensors, step = self.run.load_state()
        if tensors:
            self.state = tensors.pop("progress")
            optimizers.unpack(tensors)
            self.run.say(f"{self.stage} goes on from step {step:,} of {self.epochs * self.steps_per_epoch:,}")
        return step

    def save_if_due(self, optimizers: Optimizers, step: int, every_seconds: float) -> None:
        """Save the state that follows ``step`` finished steps, where the last save is old enough."""
        if self.run.state_is_due(every_seconds):
            self.run.save_state(optimizers.pack() | {"progress": self.state}, step)

    def _mean(self) -> float:
        return (self.state[0] / self.state[1].clamp_min(1)).item()

    def _line(self, step: int) -> str:
        rate = self._since / max(1e-9, time.monotonic() - self._began)
        left = (self.epochs * self.steps_per_epoch - step) / rate
        return (
            f"{self.stage} epoch {-(-step // self.steps_per_epoch)}/{self.epochs}  loss {self._mean():.4f}"
            f"  {rate * self.images_per_step:,.0f} images/s  {left:.0f} s left"
        )
