"""Which options may change when a run is resumed, and whether there is anything left to do."""

from typing import TYPE_CHECKING, Any

from lm.config.options import Config
from lm.files import UserError
from lm.training.clock import Clock

if TYPE_CHECKING:
    from lm.runs.checkpoint import CheckpointInfo
    from lm.runs.folder import Run

RESUMABLE = ("trainer.max_steps", "trainer.max_minutes", "trainer.patience", "log.", "name", "runs")
"""Options that may change when a run is resumed; others would make it another run, and need --allow_changes."""
CHANGEABLE_MODEL = ("model.dropout", "model.compile")
"""Options of the model that its weights do not depend on."""
FIXED = ("optim.name", "data.vocabulary")
"""Other options that can never change: the optimiser's state and the weights depend on them."""
CARRIED = ("data.sampling", "data.batch_size", "trainer.accumulate")
"""Options that the state carried by data.sampling streams depends on."""


def is_finished(config: Config, saved: "CheckpointInfo") -> bool:
    """Whether a checkpoint is at the end of the budget, or of trainer.patience at its last validation."""
    validated = saved.step - saved.step % config.eval.every
    impatient = 0 < config.trainer.patience <= validated - saved.best_step and saved.best_step > 0
    return impatient or Clock(config.trainer, saved.seconds).progress(saved.step) >= 1


def changed_options(before: Config, now: Config, allowed: bool, run: "Run") -> dict[str, list[Any]]:
    """The options that differ: {name: [before, now]}.

    Raises:
        UserError: one of them may not, or not unless changes are allowed.
    """
    old, new = before.flat(), now.flat()
    changed = {key: [old[key], value] for key, value in new.items() if value != old[key]}
    for key, (value, _) in changed.items():
        fixed = (key.startswith("model.") and key not in CHANGEABLE_MODEL) or key in FIXED
        if fixed or (key in CARRIED and "streams" in (before.data.sampling, now.data.sampling)):
            raise UserError(f"{key} is {value} in {run.path} and cannot change on resuming; start a new run")
        if not key.startswith(RESUMABLE) and not allowed:
            raise UserError(
                f"{key} is {value} in {run.path}, and another value makes it another run: "
                "start a new one, or accept that with --allow_changes"
            )
    return changed
