"""The progress bar of training."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from lm.training.recorder import Recorder


class ProgressBar(pl.callbacks.ProgressBar):
    """One line on stderr: share of the budget, step, losses, speed, time left. Without a terminal, plain lines."""

    PLAIN_EVERY = 10.0  # seconds between plain lines

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.bar: tqdm | None = None
        self.last_plain = 0.0
        self.validation = (0.0, 0.0)  # when it began, and the seconds of the last one

    def disable(self) -> None:
        """Lightning calls this in all processes but the first."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.last_plain = time.monotonic()
        if sys.stderr.isatty() and trainer.is_global_zero:
            form = "{percentage:3.0f}% {bar:20} {desc}"
            self.bar = tqdm(total=1.0, bar_format=form, mininterval=0.2, dynamic_ncols=True, file=sys.stderr)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        progress = min(1.0, pl_module.clock.progress(trainer.global_step))
        self._show(trainer, progress, self._text(progress, trainer.global_step, pl_module))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.validation = time.monotonic(), self.validation[1]

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        counts = [int(count) for count in trainer.num_val_batches]
        done = sum(counts[:dataloader_idx]) + batch_idx + 1
        progress = min(1.0, pl_module.clock.progress(trainer.global_step))
        self._show(trainer, progress, f"step {trainer.global_step}, validation {done / sum(counts):.0%}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.validation = self.validation[0], time.monotonic() - self.validation[0]

    def _show(self, trainer: pl.Trainer, progress: float, text: str) -> None:
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(progress - self.bar.n)
        elif trainer.is_global_zero and time.monotonic() - self.last_plain >= self.PLAIN_EVERY:
            self.last_plain = time.monotonic()
            print(f"{progress:4.0%}  {text}", file=sys.stderr, flush=True)

    def _text(self, progress: float, step: int, task: Any) -> str:
        latest = self.recorder.latest
        parts = [f"step {step}"]
        parts += [f"loss {latest['train/loss']:.3f}"] if "train/loss" in latest else []
        parts += [f"val {latest['val/loss']:.3f}"] if "val/loss" in latest else []
        parts += [f"accuracy {latest['val/accuracy']:.1%}"] if "val/accuracy" in latest else []
        parts += (
            [f"{latest['chars_per_second'] / 1000:.1f}k {task.config.data.unit[:4]}s/s"]
            if "chars_per_second" in latest
            else []
        )
        if 0 < progress < 1:
            left = task.clock.seconds * (1 - progress) / progress
            validations = 1 + step * (1 - progress) / progress // task.config.eval.every
            left += validations * self.validation[1]
            parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return ", ".join(parts)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.bar is not None:
            self.on_train_batch_end(trainer, pl_module)  # with the results of the last validation
            self.bar.refresh()
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
