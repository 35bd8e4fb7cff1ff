"""When checkpoints are saved, and how Lightning reads and writes them."""

import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import CheckpointIO
from tqdm import tqdm

from lm.files import alias
from lm.runs.checkpoint import read_checkpoint, save_atomically
from lm.runs.folder import Run
from lm.training.errors import Interrupted
from lm.training.recorder import Recorder


class Checkpoints(Callback):
    """Saves a checkpoint after each validation, and when a signal asks to stop.

    Args:
        run: the run folder; keeps the last checkpoint, the one before it, and the best.
        recorder: knows which is the best. Must come before this in the trainer's list of callbacks.
    """

    def __init__(self, run: Run, recorder: Recorder) -> None:
        self.folder, self.recorder = run.checkpoints, recorder
        self.signalled = False
        self.cycle = 0  # in which the last step was, with optim.cycles

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Not earlier: Lightning's own handler of SIGTERM, which this replaces, would leave a validation without saving
        # anything, and broadcasts in the middle of a step. At the end Lightning puts back what was there before that.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signal)
        if hasattr(signal, "SIGCONT"):  # after Ctrl-Z; not on Windows
            signal.signal(signal.SIGCONT, lambda number, frame: pl_module.clock.skip())
        self._name_best(trainer)  # a crash may have prevented that
        self.cycle = int(pl_module.config.optim.cycles * pl_module.clock.progress(trainer.global_step))

    def _signal(self, number: int, frame: Any) -> None:
        """Let training finish the step, save and stop. A second signal stops it at once."""
        if self.signalled and number == signal.SIGINT:
            raise Interrupted
        self.signalled = True
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
        tqdm.write("stopping after this step; once more to stop at once", file=sys.stderr)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        config = pl_module.config
        if config.optim.cycles > 1:
            self._save_cycle(trainer, pl_module)
        whole_step = batch.part + 1 == config.trainer.accumulate
        validates_next = trainer.should_stop or trainer.global_step % config.eval.every == 0  # and saves
        if whole_step and not validates_next and self._must_stop(trainer):
            if self.recorder.loss_count:
                self.recorder.training_loss(trainer)  # a diverged run is not saved
            self._save(trainer)
            raise Interrupted

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._save(trainer)
        self._name_best(trainer)
        pl_module.clock.start()
        if not trainer.should_stop and self._must_stop(trainer):
            raise Interrupted

    def _must_stop(self, trainer: pl.Trainer) -> bool:
        """Whether any process has received a signal: all must stop after the same step."""
        return trainer.strategy.reduce_boolean_decision(self.signalled, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def _save_cycle(self, trainer: pl.Trainer, task: Any) -> None:
        """Save cycleN.ckpt when the learning rate has come to the end of its N-th schedule, but for the last."""
        cycles = task.config.optim.cycles
        now = trainer.strategy.broadcast(int(cycles * task.clock.progress(trainer.global_step)))
        if self.cycle < now < cycles:
            task.clock.stop()
            trainer.save_checkpoint(self.folder / f"cycle{now}.ckpt", weights_only=False)
            task.clock.start()
        self.cycle = now

    def _name_best(self, trainer: pl.Trainer) -> None:
        """Make best.ckpt a name of the last checkpoint if that is the best."""
        if trainer.is_global_zero and 0 < self.recorder.best_step == trainer.global_step:
            alias(self.folder / "last.ckpt", "best.ckpt")


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically, keeps the one before, and reads them as data."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_atomically(checkpoint, path, "previous.ckpt" if Path(path).name == "last.ckpt" else None)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        path.unlink()
