"""Recording a training run: metrics, samples, the summary, the end of the budget."""

import math
import sys
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from lm import __version__
from lm.config.options import COPYING
from lm.files import UserError
from lm.report.format import HIDDEN
from lm.runs.environment import peak_memory
from lm.runs.folder import Run
from lm.runs.metrics import AXES
from lm.sampling.text import generate
from lm.training.errors import Diverged
from lm.training.start import Stages
from lm.training.task import Task

if TYPE_CHECKING:
    from lm.corpora.copying import Copying
    from lm.corpora.corpus import Corpus

BETTER = {"val/loss": min, "val/loss_streaming": min, "val/accuracy": max}
"""Metrics of which summary.json has the best value."""
RESTORED = ("loss_sum", "loss_count", "last_row", "latest", "best", "best_step")
"""Attributes of `Recorder` that a resumed run goes on with."""


class Recorder(Callback):
    """Runs the clock; writes metrics, samples and the summary; ends training when the budget is used.

    Args:
        run: the run folder.
        corpus: what is trained on.
        task: the module that is trained.
        stages: of the start, the last of which ends with the first step.
    """

    def __init__(self, run: Run, corpus: "Corpus | Copying", task: Task, stages: Stages) -> None:
        self.run, self.corpus, self.task, self.stages = run, corpus, task, stages
        self.chars_per_step = task.config.data.batch_size * task.config.data.context
        self.flops_per_step = 3 * task.model.flops(task.config.data.context) * self.chars_per_step
        self.began = False
        self.loss_sum, self.loss_count = torch.zeros(()), 0  # of the parts since the last row
        self.last_row = (0, 0.0)  # step and seconds of the last row, for the speed
        self.latest: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_step = 0  # of best["val/loss"]

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in RESTORED},
            "loss_sum": self._gather_loss_sums().cpu(),
            "seconds": self.task.clock.seconds,
            "corpus": self.corpus.digest,
            "sizes": self.run.sync() if self.task.global_rank == 0 else {},
        }

    def _gather_loss_sums(self) -> torch.Tensor:
        """The sum of each process (world size,), or of the only one ()."""
        if self.task.trainer.world_size == 1:
            return self.loss_sum
        sums = [torch.zeros_like(self.loss_sum) for _ in range(self.task.trainer.world_size)]
        torch.distributed.all_gather(sums, self.loss_sum)
        return torch.stack(sums)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update({name: value for name, value in state.items() if name in RESTORED})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            self._require_same_everywhere(trainer.world_size)
        self.began = True
        self.loss_sum = self.loss_sum.to(self.task.device)
        if self.loss_sum.dim():
            same = len(self.loss_sum) == trainer.world_size
            self.loss_sum = self.loss_sum[trainer.global_rank].clone() if same else self.loss_sum.mean()
        if trainer.is_global_zero:  # what a comparison of bytes with characters needs
            size = self.corpus.bytes_per_character(self.task.config.eval.chars)
            self.run.update_summary(bytes_per_character=round(size, 6))
        self.task.clock.start()

    def _require_same_everywhere(self, world_size: int) -> None:
        """Raises UserError, in all processes, if one has another version of the program or another text."""
        found: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(found, (__version__, self.corpus.digest))
        for what, values in zip(
            ("version of this program", "text as data.corpus"), zip(*found, strict=True), strict=True
        ):
            if others := [rank for rank, value in enumerate(values) if value != values[0]]:
                raise UserError(f"process {others[0]} has another {what} than process 0")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.task.clock.lap()
        self.stages.end_once("first step")
        self.loss_sum += outputs["loss"].detach() * self.task.config.trainer.accumulate
        self.loss_count += 1
        if batch.part + 1 < self.task.config.trainer.accumulate:
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
        loss = self.training_loss(trainer)
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        before, seconds = self.last_row
        speed = (step - before) * self.chars_per_step / max(self.task.clock.seconds - seconds, 1e-9)
        self.last_row = (step, self.task.clock.seconds)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        norm = float(self.task.grad_norm)
        self._write(trainer, {"train/loss": loss, "lr": lr, "grad_norm": norm, "chars_per_second": speed})

    def training_loss(self, trainer: pl.Trainer) -> float:
        """Mean training loss since the last row, over all processes, so that they come to the same decision.

        Raises:
            Diverged: it is not a number, or too high.
        """
        loss = trainer.strategy.reduce(self.loss_sum / self.loss_count, reduce_op="mean").item()
        self._raise_if_diverged(loss, "training", trainer.global_step)
        return loss

    def _raise_if_diverged(self, loss: float, name: str, step: int) -> None:
        """Raises Diverged, so that no result of a diverged run is written or saved."""
        guessing = math.log(len(self.corpus.tokenizer))
        if not loss < 10 * guessing:
            raise Diverged(f"the {name} loss is {loss:.3g} at step {step}, where guessing has {guessing:.2f}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.task.clock.stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Runs before the checkpoint of this step is written."""
        values = self.task.validation_results()
        self._raise_if_diverged(values["val/loss"], "validation", trainer.global_step)
        self._write(trainer, values)
        if values["val/loss"] <= self.best.get("val/loss", math.inf):
            self.best_step = trainer.global_step
        for name, better in BETTER.items():
            if name in values:
                self.best[name] = better(values[name], self.best.get(name, values[name]))
        patience = self.task.config.trainer.patience
        if patience and trainer.global_step - self.best_step >= patience:
            trainer.should_stop = True
        if trainer.is_global_zero:
            self._sample(trainer)
            self.write_summary(trainer, "running")

    def _write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        """Write a row to metrics.csv and to every logger."""
        step, seconds = trainer.global_step, round(self.task.clock.seconds, 3)
        axes = (step, step * self.chars_per_step, seconds, step * self.flops_per_step)
        row = dict(zip(AXES, axes, strict=True)) | values
        self.latest |= row
        if trainer.is_global_zero:
            self.run.append_metrics(row)
            for logger in trainer.loggers:
                logger.log_metrics(row, step)

    def _sample(self, trainer: pl.Trainer) -> None:
        """Continue the prompt, with a generator of its own that leaves those of training as they are."""
        config, step = self.task.config, trainer.global_step
        if not config.eval.sample_chars or config.data.corpus == COPYING:
            return
        prompt = config.eval.prompt if not self.corpus.tokenizer.missing(config.eval.prompt) else ""
        model, tokenizer, length = self.task.model, self.corpus.tokenizer, config.eval.sample_chars
        text = "".join(generate(model, tokenizer, prompt, length, temperature=0.8, seed=config.seed))
        self.run.append_sample(step, prompt, text)
        streaming = f", {self.latest['val/loss_streaming']:.3f} streaming" if config.eval.streaming else ""
        head = f"--- step {step}: validation loss {self.latest['val/loss']:.3f} windowed{streaming}; a sample ---"
        tqdm.write(f"\n{head}\n{text.strip().translate(HIDDEN)}\n", file=sys.stderr)
        for logger in trainer.loggers:
            logger.log_text("sample", ["step", "prompt", "text"], [[str(step), prompt, text]])  # type: ignore[attr-defined]

    def write_summary(self, trainer: pl.Trainer, status: str) -> None:
        """Update summary.json: before training has begun only the status, then everything."""
        if not self.began:
            self.run.update_summary(status=status)
            return
        step, seconds = trainer.global_step, self.task.clock.seconds
        self.run.update_summary(
            status=status,
            mixer=self.task.config.mixer_name,
            parameters=self.task.model.parameters_total,
            step=step,
            chars=step * self.chars_per_step,
            train_seconds=round(seconds, 3),
            startup_seconds=round(sum(self.stages.seconds.values()), 1),
            startup=self.stages.seconds,
            chars_per_second=round(step * self.chars_per_step / max(seconds, 1e-9), 1),
            best=self.best,
            final={name: self.latest[name] for name in ("train/loss", *self.best) if name in self.latest},
            device=str(self.task.device),
            precision=str(trainer.precision),
            **peak_memory(),
        )
