"""Train a character-level language model: `python train.py [--config FILE] [--section.key value ...]`."""

import logging
import os
import sys
import time
import warnings
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.config import Config, UserError, parse

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lm.copying import Copying
    from lm.corpus import Corpus
    from lm.run import Run, Saved
    from lm.training import Recorder

STARTED = time.monotonic()
RESUMABLE = ("trainer.max_steps", "trainer.max_minutes", "log.", "name", "runs")
"""Options that may change when a run is resumed; others would make it another run, and take --allow_changes."""
CHANGEABLE_MODEL = ("model.dropout", "model.compile")
"""Options of the model that its weights do not depend on."""
CARRIED = ("data.sampling", "data.batch_size", "trainer.accumulate")
"""Options that the state carried by data.sampling streams depends on."""
RUN_NAME = "CHAR_LM_RUN_NAME"
"""Hands a name made from the time on to the processes of the other devices."""


def main(argv: list[str] | None = None) -> int:
    """Train. Returns the exit code: 0, 1 if training failed, 2 for a mistake in the command, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    config, resume = parse(argv)
    run = None
    try:
        if resume is None:
            config, corpus, run = prepare(config)
            return train(config, corpus, run)
        from lm.run import Run

        run = Run.find(resume, config.runs)
        return go_on(run, argv)
    except UserError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        if run is not None:
            run.unlock()


def prepare(config: Config) -> "tuple[Config, Corpus | Copying, Run]":
    """Name the run and read the corpus: what can go wrong without torch does so before torch is imported."""
    from lm.corpus import load
    from lm.run import Run

    if config.name is None:
        config.name = f"{config.mixer_name}-{datetime.now():%Y%m%d-%H%M%S}"
        config.name = os.environ.setdefault(RUN_NAME, config.name) if config.trainer.devices > 1 else config.name
    run = Run(Path(config.runs) / config.name)
    if not is_helper() and run.taken:
        raise UserError(f"{run.path} exists already; choose another --name, or go on with --resume")
    return config, load(config.data), run


def go_on(run: "Run", argv: list[str]) -> int:
    """Resume a run from its newest whole checkpoint, and make sure that it stays the same run."""
    from lm.corpus import load

    if not is_helper():
        run.lock()
    saved_config = run.config()
    config, _ = parse(argv, saved_config.to_yaml())
    allowed = "--allow_changes" in argv
    changed = changes(saved_config, config, allowed, run)
    corpus = load(config.data)
    saved = run.newest_checkpoint()
    before, now = (saved.corpus if saved else "") or run.corpus(), corpus.digest
    if not run.fits(corpus.tokenizer):
        raise UserError(f"data.corpus {config.data.corpus} is not the text that {run.path} was trained on")
    if before not in ("", now):
        if not allowed:
            raise UserError(
                f"data.corpus {config.data.corpus} is no longer the text that {run.path} was trained on: "
                "put that back, start a new run, or accept that with --allow_changes"
            )
        changed["text of data.corpus"] = [before, now]
    if saved and used_up(config, saved):
        if any(name.startswith("trainer.max_") for name in changed):
            raise UserError(
                f"{run.path} is at step {saved.step} already, after {saved.seconds:.0f} s: "
                "give a larger --trainer.max_steps or --trainer.max_minutes"
            )
        run.keep_best(saved)  # a crash may have come between the two names
        run.update_summary(status="finished")
        say(f"{run.path} is finished; to go on, give a larger --trainer.max_steps or --trainer.max_minutes")
        return 0
    return train(config, corpus, run, changed, saved)


def changes(before: Config, now: Config, allowed: bool, run: "Run") -> dict[str, list[Any]]:
    """The options that differ: {name: [before, now]}.

    Raises:
        UserError: one of them may not, or not unless it is asked for.
    """
    old, new = before.flat(), now.flat()
    changed = {key: [old[key], value] for key, value in new.items() if value != old[key]}
    for key, (value, _) in changed.items():
        fixed = (key.startswith("model.") and key not in CHANGEABLE_MODEL) or key == "optim.name"
        if fixed or (key in CARRIED and "streams" in (before.data.sampling, now.data.sampling)):
            raise UserError(f"{key} is {value} in {run.path} and cannot change on resuming; start a new run")
        if not key.startswith(RESUMABLE) and not allowed:
            raise UserError(
                f"{key} is {value} in {run.path}, and another value makes it another run: "
                "start a new one, or accept that with --allow_changes"
            )
    return changed


def used_up(config: Config, saved: "Saved") -> bool:
    """Whether a checkpoint stands at the end of the budget."""
    budget = config.trainer
    if budget.max_steps is not None:
        return saved.step >= budget.max_steps
    return saved.seconds >= 60 * (budget.max_minutes or 0)


def is_helper() -> bool:
    """Whether this is one of the further processes of a training on several devices."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 or int(os.environ.get("NODE_RANK", 0)) > 0


def train(
    config: Config,
    corpus: "Corpus | Copying",
    run: "Run",
    changed: dict[str, Any] | None = None,
    saved: "Saved | None" = None,
) -> int:
    """Everything that needs torch.

    Args:
        changed: the options that a resumed run has changed; None for a new run.
        saved: the checkpoint to go on from.
    """
    quieten()
    import torch

    from lm.model import LanguageModel
    from lm.task import Clock, CorpusDataModule, Task
    from lm.training import AtomicCheckpointIO, Checkpoints, ProgressBar, Recorder, failures

    with failures():
        torch.manual_seed(config.seed)
        model = LanguageModel(len(corpus.tokenizer), config.model)
    if config.model.compile:
        model.compile()  # in place: the names of the weights stay as they are
    precision = resolve_precision(config)
    check_devices(config, precision)
    if not is_helper():
        if changed is None:
            run.start(config, corpus.tokenizer, corpus.digest)
        else:
            run.resume(config, corpus.tokenizer, saved, changed, corpus.digest)
    task = Task(model, config, corpus.tokenizer.characters, Clock(config.trainer))
    flops = 3 * model.flops(config.data.context) * config.data.batch_size * config.data.context
    recorder = Recorder(run, corpus.tokenizer, flops, STARTED)
    callbacks = [recorder, Checkpoints(run, recorder), ProgressBar(recorder)]
    trainer = make_trainer(config, run, precision, callbacks, AtomicCheckpointIO())
    announce(config, corpus, model.parameters_total, trainer, run)
    checkpoint = run.checkpoints / "last.ckpt" if saved else None
    return fit(trainer, task, CorpusDataModule(corpus, config), checkpoint, recorder)


def fit(trainer: "pl.Trainer", task: Any, data: Any, checkpoint: Path | None, recorder: "Recorder") -> int:
    """Train, and leave a summary however it ends. Returns the exit code."""
    from lm.training import Diverged, Interrupted, failures

    status = "failed"
    try:
        with failures():
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        status = "finished"
    except (Interrupted, SystemExit):  # Lightning exits at a Ctrl-C that comes before ours is in place
        status = "interrupted"
    except Diverged as error:
        status = "diverged"
        say(f"stopped: {error}. The last good checkpoint is kept; try a lower --optim.lr or --optim.muon_lr")
    except UserError as error:
        raise UserError(f"{error}. Then go on with: python train.py --resume {recorder.run.path}") from None
    finally:
        if not is_helper():
            with suppress(UserError):  # the disk may still be full
                recorder.write_summary(trainer, status)
    report(recorder.run, status)
    return {"finished": 0, "interrupted": 130}.get(status, 1)


def quieten() -> None:
    """Lightning's hints on what this program has decided already."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*isinstance.treespec, LeafSpec.*", ".*srun.*"):
        warnings.filterwarnings("ignore", message)


def make_trainer(config: Config, run: "Run", precision: Any, callbacks: list[Any], checkpoint_io: Any) -> "pl.Trainer":
    """Lightning's trainer for one endless epoch; the recorder ends it."""
    import lightning.pytorch as pl

    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=config.trainer.strategy,
        precision=precision,
        max_epochs=-1,
        max_steps=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        val_check_interval=config.eval.every * config.trainer.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=make_logger(config, run) or False,
        callbacks=callbacks,
        plugins=[checkpoint_io],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.path,
    )


def resolve_precision(config: Config) -> Any:
    """`auto` as what the device does best."""
    import torch

    gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    if config.trainer.precision == "16-mixed" and not gpu:
        raise UserError("trainer.precision 16-mixed needs a GPU; on a CPU use 32 or bf16-mixed")
    if config.trainer.precision != "auto":
        return config.trainer.precision
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else 32


def check_devices(config: Config, precision: Any) -> None:
    """Refuse devices and strategies that Lightning does not have here, before a folder is made."""
    import lightning.pytorch as pl
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    wanted = config.trainer
    try:
        pl.Trainer(
            accelerator=wanted.accelerator,
            devices=wanted.devices,
            num_nodes=wanted.num_nodes,
            strategy=wanted.strategy,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        asked = f"accelerator {wanted.accelerator}, {wanted.devices} devices, strategy {wanted.strategy!r}"
        reason = str(error).split(". ")[0]
        raise UserError(f"trainer: {asked} cannot be had here: {reason}; the default, auto, can") from None


def make_logger(config: Config, run: "Run") -> Any:
    """Weights & Biases with our names and x-axes, or None."""
    if config.log.wandb == "disabled" or is_helper():
        return None
    try:
        import wandb
    except ModuleNotFoundError:
        say("wandb is not installed: metrics go to metrics.csv only")
        return None
    from lightning.pytorch.loggers import WandbLogger

    from lm.run import AXES

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


def announce(config: Config, corpus: "Corpus | Copying", parameters: int, trainer: "pl.Trainer", run: "Run") -> None:
    """What is going to be trained."""
    budget = (
        f"{config.trainer.max_steps} steps"
        if config.trainer.max_steps
        else f"{config.trainer.max_minutes:g} minutes, validation excluded"
    )
    kind = trainer.strategy.root_device.type
    shape = f"{config.model.layers} layers of width {config.model.width}"
    say(f"model    {config.mixer_name}, {shape}: {parameters:,} parameters")
    say(f"corpus   {config.data.corpus}: {corpus}")
    say(f"batches  {config.data.batch_size} x {config.data.context} characters, {config.data.sampling}")
    say(f"device   {trainer.num_devices} x {kind}, precision {trainer.precision}")
    say(f"budget   {budget}")
    say(f"run      {run.path}")


def report(run: "Run", status: str) -> None:
    """How it went, and what to do next."""
    if is_helper():
        return
    summary = run.summary()
    if "step" in summary:
        say(f"\n{status} after {summary['step']} steps, {summary['train_seconds']:.0f} s of training", end="")
        say(f" ({summary['chars_per_second']:,.0f} characters/s, {summary['peak_memory_mb']:,.0f} MB)")
    if best := summary.get("best"):
        say(f"best validation loss: {best['val/loss']:.4f} nats/char windowed", end="")
        say(f", {best['val/loss_streaming']:.4f} streaming" if "val/loss_streaming" in best else "", end="")
        say(f"; accuracy {best['val/accuracy']:.2%}" if "val/accuracy" in best else "")
    say(f"the run is in {run.path}")
    if status == "finished":
        say(f"write text:    python generate.py {run.path}\ncompare runs:  python -m lm.compare {run.path.parent}/*")
    else:
        say(f"go on with it: python train.py --resume {run.path}")


def say(text: str, end: str = "\n") -> None:
    """Messages go to stderr, from the first process only."""
    if not is_helper():
        print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
