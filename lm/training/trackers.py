"""Weights & Biases and TensorBoard: the rows of metrics.csv under the same names, the samples, the best checkpoint."""

import re
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lm.config.options import Config
from lm.runs.metrics import AXES
from lm.training.processes import print_status

if TYPE_CHECKING:
    from lm.runs.folder import Run


class TensorBoard(TensorBoardLogger):
    """TensorBoard's files in the folder `tensorboard` of a run.

    Args:
        step: of the checkpoint that the run goes on from: rows after it are to be hidden, which were logged before it
            was stopped.
    """

    def __init__(self, run: "Run", step: int) -> None:
        super().__init__(run.path, name="", version="tensorboard", default_hp_metric=False, purge_step=step + 1)

    def log_text(self, key: str, columns: list[str], data: list[list[str]]) -> None:
        """Rows of (step, prompt, text): the text, indented, so that it is shown as it is and not as Markdown."""
        for step, _, text in data:
            self.experiment.add_text(key, "    " + text.replace("\n", "\n    "), int(step))


def make_loggers(config: Config, run: "Run", step: int = 0) -> list[Any]:
    """The loggers that the configuration asks for. Weights & Biases is left out where it is not installed.

    Args:
        step: of the checkpoint that the run goes on from.
    """
    loggers: list[Any] = []
    if config.log.wandb != "disabled":
        try:
            loggers.append(_make_wandb(config, run))
        except ModuleNotFoundError:
            print_status("wandb is not installed: metrics go to metrics.csv only")
    if config.log.tensorboard:
        loggers.append(TensorBoard(run, step))
        loggers[-1].log_text("config", [], [[str(step), "", config.to_yaml()]])
    return loggers


def _make_wandb(config: Config, run: "Run") -> WandbLogger:
    """Weights & Biases with our names and x-axes."""
    import wandb

    experiment = wandb.init(
        mode=config.log.wandb,
        project=config.log.project,
        group=config.log.group or config.mixer_name,
        name=config.name,
        id=run.path.name,
        resume="allow" if config.log.wandb == "online" else None,
        dir=run.path,
        config=config.flat(),
        settings=wandb.Settings(silent=True, console="off"),
    )
    for axis in AXES:
        experiment.define_metric(axis, hidden=True)
    experiment.define_metric("*", step_metric="step")
    return WandbLogger(experiment=experiment, save_dir=run.path)


def log_best(config: Config, run: "Run", loggers: list[Any]) -> None:
    """With log.artifacts, give the best checkpoint to Weights & Biases: an artifact of the run's name and type `model`.

    Offline, W&B keeps a copy of it, outside the run folder (WANDB_DATA_DIR), until `wandb sync` uploads it.
    """
    best = run.checkpoints / "best.ckpt"
    if not (config.log.artifacts and best.exists()):
        return
    import wandb

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            about = {name: value for name, value in run.summary().items() if name in ("mixer", "parameters", "best")}
            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", run.path.name), "model", metadata=about)
            artifact.add_file(str(best))
            logger.experiment.log_artifact(artifact, aliases=["best"])
