"""What happens around the steps: metrics, samples, checkpoints, the progress bar, the end."""

import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.io import CheckpointIO
from tqdm import tqdm

from lm.config import COPYING, UserError
from lm.run import Run, alias, read_checkpoint, save_atomically
from lm.sampling import generate
from lm.task import Task
from lm.tokenizer import CharTokenizer

BETTER = {"val/loss": min, "val/loss_streaming": min, "val/accuracy": max}
"""What the summary keeps the best of, where there is such a value."""


class Diverged(Exception):
    """The loss is no longer a number, or far above that of guessing."""


class Interrupted(Exception):
    """The user, or the system, asked to stop."""


@contextmanager
def failures() -> Iterator[None]:
    """What a machine can have against a training, as one line.

    Raises:
        UserError: memory is short, or another process of this training is gone.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
            raise UserError(
                "out of memory: lower data.batch_size, data.context or model.width, or raise trainer.accumulate"
            ) from error
        if "by peer" in text:  # gloo: "Connection closed by peer", "Connection reset by peer"
            raise UserError("another process of this training has died") from error
        raise


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


def peak_memory() -> dict[str, float]:
    """Largest memory of this process so far, in MB; on a GPU also of its tensors."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)}
    if torch.cuda.is_available():
        result["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return result


class Checkpoints(Callback):
    """Saves at every validation, and when a signal asks for the end: last, the one before it, and the best."""

    def __init__(self, run: Run, recorder: Recorder) -> None:
        self.folder, self.recorder = run.checkpoints, recorder
        self.signalled = False
        self.previous_handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous_handlers[number] = signal.signal(number, self._signal)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._keep_best(trainer)  # a crash may have come between the two names

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _signal(self, number: int, frame: Any) -> None:
        """Finish the step, save, stop. A second signal acts at once."""
        if self.signalled and number == signal.SIGINT:
            raise Interrupted
        self.signalled = True
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
        tqdm.write("stopping after this step; once more to stop at once", file=sys.stderr)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        config = pl_module.config
        whole_step = batch["part"] + 1 == config.trainer.accumulate
        validates_next = trainer.should_stop or trainer.global_step % config.eval.every == 0  # and saves
        if whole_step and not validates_next and self._asked_to_stop(trainer):
            self.recorder.require_sane(outputs["loss"].item(), "training", trainer.global_step)
            self._save(trainer)
            raise Interrupted

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.clock.stop()
        self._save(trainer)
        self._keep_best(trainer)
        pl_module.clock.start()
        if not trainer.should_stop and self._asked_to_stop(trainer):
            raise Interrupted

    def _asked_to_stop(self, trainer: pl.Trainer) -> bool:
        """Whether any process has a signal: they must leave training after the same step."""
        return trainer.strategy.reduce_boolean_decision(self.signalled, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def _keep_best(self, trainer: pl.Trainer) -> None:
        """Name the checkpoint of this step the best, if it is."""
        if trainer.is_global_zero and 0 < self.recorder.best_step == trainer.global_step:
            alias(self.folder / "last.ckpt", "best.ckpt")


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints that are whole or absent, and are read as data; a new one keeps the one before it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_atomically(checkpoint, path, "previous.ckpt")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        path.unlink()


class ProgressBar(pl.callbacks.ProgressBar):
    """One line on stderr: share of the budget, step, losses, speed, time left. In a file, a plain line now and then."""

    PLAIN_EVERY = 10.0  # seconds

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.bar: tqdm | None = None
        self.last_plain = 0.0

    def disable(self) -> None:
        """Lightning calls this in all processes but the first."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.last_plain = time.monotonic()
        if sys.stderr.isatty() and trainer.is_global_zero:
            form = "{percentage:3.0f}% {bar:20} {postfix}"
            self.bar = tqdm(total=1.0, bar_format=form, mininterval=0.2, dynamic_ncols=True, file=sys.stderr)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        progress = min(1.0, pl_module.clock.progress(trainer.global_step))
        if self.bar is not None:
            text = self._text(progress, trainer.global_step, pl_module.clock.seconds)
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(progress - self.bar.n)
        elif trainer.is_global_zero and time.monotonic() - self.last_plain >= self.PLAIN_EVERY:
            self.last_plain = time.monotonic()
            text = self._text(progress, trainer.global_step, pl_module.clock.seconds)
            print(f"{progress:4.0%}  {text}", file=sys.stderr, flush=True)

    def _text(self, progress: float, step: int, seconds: float) -> str:
        latest = self.recorder.latest
        parts = [f"step {step}"]
        parts += [f"loss {latest['train/loss']:.3f}"] if "train/loss" in latest else []
        parts += [f"val {latest['val/loss']:.3f}"] if "val/loss" in latest else []
        parts += [f"accuracy {latest['val/accuracy']:.1%}"] if "val/accuracy" in latest else []
        parts += [f"{latest['chars_per_second'] / 1000:.1f}k chars/s"] if "chars_per_second" in latest else []
        if progress > 0:
            left = seconds * (1 - progress) / progress
            parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return ", ".join(parts)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.refresh()
            self.bar.close()
            self.bar = None
