"""What happens around the steps: metrics, samples, checkpoints, the progress bar, the end."""

import math
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from tqdm import tqdm

from lm.config.options import COPYING
from lm.corpora.tokenizer import CharTokenizer
from lm.runs.environment import peak_memory
from lm.runs.folder import Run
from lm.sampling.text import generate
from lm.training.errors import Diverged
from lm.training.task import Task

BETTER = {"val/loss": min, "val/loss_streaming": min, "val/accuracy": max}
"""What the summary keeps the best of, where there is such a value."""


class Recorder(Callback):
    """Keeps the clock; writes metrics, samples and the summary; ends training when the budget is used up."""

    def __init__(self, run: Run, tokenizer: CharTokenizer, flops_per_step: float, started: float) -> None:
        self.run, self.tokenizer, self.flops_per_step = run, tokenizer, flops_per_step
        self.started = started  # when the process began, for:
        self.startup_seconds = 0.0  # until the first step was done
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        self.last_row = (0, 0.0)  # step and seconds of the last row, for the speed
        self.latest: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_step = 0  # of best["val/loss"]

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.task.clock.seconds,
            "loss_sum": self._everyones_loss_sum().cpu(),
            "loss_count": self.loss_count,
            "last_row": self.last_row,
            "latest": self.latest,
            "best": self.best,
            "best_step": self.best_step,
            "corpus": self.run.corpus_digest,
            "sizes": self.run.settle() if self.task.global_rank == 0 else {},
        }

    def _everyones_loss_sum(self) -> torch.Tensor:
        """One of each process, (world size,), or the only one, ()."""
        if self.task.trainer.world_size == 1:
            return self.loss_sum
        sums = [torch.zeros_like(self.loss_sum) for _ in range(self.task.trainer.world_size)]
        torch.distributed.all_gather(sums, self.loss_sum)
        return torch.stack(sums)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed_seconds = state["seconds"]
        vars(self).update({name: value for name, value in state.items() if name not in ("seconds", "corpus", "sizes")})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Task)
        self.task = pl_module

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.task.clock.seconds = getattr(self, "resumed_seconds", 0.0)
        self.loss_sum = self.loss_sum.to(self.task.device)
        if self.loss_sum.dim():
            same = len(self.loss_sum) == trainer.world_size
            self.loss_sum = self.loss_sum[trainer.global_rank].clone() if same else self.loss_sum.mean()
        self.task.clock.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.task.clock.lap()
        self.startup_seconds = self.startup_seconds or time.monotonic() - self.started
        self.loss_sum += outputs["loss"].detach() * self.task.config.trainer.accumulate
        self.loss_count += 1
        if batch["part"] + 1 < self.task.config.trainer.accumulate:
            return
        step = trainer.global_step
        done = self.task.clock.progress(step) >= 1
        if trainer.world_size > 1:
            done = trainer.strategy.broadcast(done)
        if done:
            trainer.should_stop = True
        if done or step % self.task.config.log.every == 0:
            self._log_training(trainer, step)

    def _log_training(self, trainer: pl.Trainer, step: int) -> None:
        loss = trainer.strategy.reduce(self.loss_sum / self.loss_count, reduce_op="mean").item()
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        self.require_sane(loss, "training", step)
        before, seconds = self.last_row
        speed = (step - before) * self._chars_per_step / max(self.task.clock.seconds - seconds, 1e-9)
        self.last_row = (step, self.task.clock.seconds)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        norm = float(self.task.grad_norm)
        self._write(trainer, {"train/loss": loss, "lr": lr, "grad_norm": norm, "chars_per_second": speed})

    def require_sane(self, loss: float, name: str, step: int) -> None:
        """Raises Diverged before anything of a lost run is written or saved."""
        guessing = math.log(len(self.tokenizer))
        if not loss < 10 * guessing:
            raise Diverged(f"the {name} loss is {loss:.3g} at step {step}, where guessing has {guessing:.2f}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.task.clock.stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Runs before the checkpoint of this step is written."""
        values = self.task.validation_results()
        self.require_sane(values["val/loss"], "validation", trainer.global_step)
        self._write(trainer, values)
        if values["val/loss"] <= self.best.get("val/loss", math.inf):
            self.best_step = trainer.global_step
        for name, better in BETTER.items():
            if name in values:
                self.best[name] = better(values[name], self.best.get(name, values[name]))
        if trainer.is_global_zero:
            self._sample(trainer)
            self.write_summary(trainer, "running")
        self.task.clock.start()

    @property
    def _chars_per_step(self) -> int:
        return self.task.config.data.batch_size * self.task.config.data.context

    def _write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        """A row to metrics.csv, and the same to every logger."""
        step, seconds = trainer.global_step, round(self.task.clock.seconds, 3)
        axes = (step, step * self._chars_per_step, seconds, step * self.flops_per_step)
        row = dict(zip(("step", "chars", "train_seconds", "flops"), axes, strict=True)) | values
        self.latest |= row
        if trainer.is_global_zero:
            self.run.append_metrics(row)
            for logger in trainer.loggers:
                logger.log_metrics(row, step)

    def _sample(self, trainer: pl.Trainer) -> None:
        """Continue the prompt with a generator of its own: training's randomness stays as it is."""
        settings = self.task.config.eval
        if not settings.sample_chars or self.task.config.data.corpus == COPYING:
            return
        prompt = settings.prompt if not self.tokenizer.missing(settings.prompt) else ""
        step, seed = trainer.global_step, self.task.config.seed
        pieces = generate(self.task.model, self.tokenizer, prompt, settings.sample_chars, temperature=0.8, seed=seed)
        text = "".join(pieces)
        self.run.append_sample(step, prompt, text)
        loss, streaming = self.latest["val/loss"], self.latest["val/loss_streaming"]
        head = f"--- step {step}: validation loss {loss:.3f} windowed, {streaming:.3f} streaming; a sample ---"
        tqdm.write(f"\n{head}\n{text.strip()}\n", file=sys.stderr)
        for logger in trainer.loggers:
            assert isinstance(logger, WandbLogger)
            logger.log_text("sample", ["step", "prompt", "text"], [[str(step), prompt, text]])

    def write_summary(self, trainer: pl.Trainer, status: str) -> None:
        """summary.json as things stand; nothing if training never began."""
        if not hasattr(self, "task"):
            return
        step, seconds = trainer.global_step, self.task.clock.seconds
        self.run.update_summary(
            status=status,
            mixer=self.task.config.mixer_name,
            parameters=self.task.model.parameters_total,
            step=step,
            chars=step * self._chars_per_step,
            train_seconds=round(seconds, 3),
            startup_seconds=round(self.startup_seconds, 1),
            chars_per_second=round(step * self._chars_per_step / max(seconds, 1e-9), 1),
            best=self.best,
            final={name: self.latest[name] for name in ("train/loss", *self.best) if name in self.latest},
            device=str(self.task.device),
            precision=str(trainer.precision),
            **peak_memory(),
        )
