"""`char-lm train`: start or resume a run, and report how it ended."""

import gc
import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.config.options import Config
from lm.config.resolve import Start, read_words, resolve
from lm.files import UserError
from lm.training.clock import Clock
from lm.training.processes import (
    RUN_NAME,
    add_launch,
    end_with_launcher,
    is_first_process,
    print_status,
    wait_for_first_process,
)
from lm.training.resume import changed_options, is_finished
from lm.training.start import Stages, import_libraries, keep_freed_memory
from lm.training.trainer import GROUP_SECONDS, make_trainer, quieten, resolve_precision

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lm.corpora.copying import Copying
    from lm.corpora.corpus import Corpus
    from lm.model import LanguageModel
    from lm.runs.checkpoint import CheckpointInfo
    from lm.runs.folder import Run
    from lm.training.recorder import Recorder

STARTED = time.monotonic()


def main(words: list[str]) -> int:
    """Train. Returns the exit code: 0, 1 if training failed, 130 if it was interrupted.

    Raises:
        UserError: a mistake in the command, or something that this machine does not have.
    """
    start, given = read_words(words)
    given = add_launch(given)
    end_with_launcher()
    from lm.runs.folder import Run

    run = None
    try:
        if start.resume == "auto":
            start.resume = existing_run(resolve(given, start.config))
        if start.resume is None:
            config, corpus, run = prepare(resolve(given, start.config))
            return train(config, corpus, run)
        run = Run.find(start.resume, given.get("runs", Config.runs))
        return resume(run, start, given)
    finally:
        if run is not None:
            run.unlock()


def prepare(config: Config) -> "tuple[Config, Corpus | Copying, Run]":
    """Name the run and read the corpus, so that errors in them are found before torch is imported."""
    from lm.corpora.corpus import load
    from lm.runs.folder import Run

    if config.name is None:
        config.name = f"{config.mixer_name}-{datetime.now():%Y%m%d-%H%M%S}"
        config.name = os.environ.setdefault(RUN_NAME, config.name) if config.trainer.devices > 1 else config.name
    run = Run(Path(config.runs) / config.name)
    if is_first_process() and run.exists:
        raise UserError(f"{run.path} exists already; choose another --name, or go on with --resume")
    return config, load(config.data), run


def existing_run(config: Config) -> str | None:
    """The folder of the named run if there is something to go on with, else None.

    The first process makes the folder while others look for it, so they ask for a checkpoint, which comes after all
    have met.

    Raises:
        UserError: the configuration has no name.
    """
    from lm.runs.folder import Run

    if config.name is None:
        raise UserError("--resume auto needs the --name of the run")
    run = Run(Path(config.runs) / config.name)
    there = run.exists if is_first_process() else any(run.checkpoints.glob("*.ckpt"))
    return str(run.path) if there else None


def resume(run: "Run", start: Start, given: dict[str, Any]) -> int:
    """Resume a run from its newest undamaged checkpoint, if options and text allow it. Returns the exit code."""
    from lm.corpora.corpus import load

    if is_first_process():
        run.lock()
    saved_config = run.config()
    config = resolve(given, start.config, saved_config)
    if config.trainer.precision == "auto":
        config.trainer.precision = saved_config.trainer.precision
    changed = changed_options(saved_config, config, start.allow_changes, run)
    corpus = load(config.data)
    saved = run.newest_checkpoint()
    if not saved:
        if run.summary().get("status") == "finished":
            raise UserError(f"{run.path} is finished, but has no checkpoint to go on from: start a new run")
        print_status(f"{run.path} has no checkpoint yet: it starts from step 0")
    before = (saved.corpus if saved else "") or run.corpus_digest()
    if not run.fits(corpus.tokenizer):
        raise UserError(f"data.corpus {config.data.corpus} is not the text that {run.path} was trained on")
    if before not in ("", corpus.digest):
        if not start.allow_changes:
            raise UserError(
                f"data.corpus {config.data.corpus} is no longer the text that {run.path} was trained on: "
                "put that back, start a new run, or accept that with --allow_changes"
            )
        changed["text of data.corpus"] = [before, corpus.digest]
    if saved and is_finished(config, saved):
        if any(name.startswith(("trainer.max_", "trainer.patience")) for name in changed):
            raise UserError(
                f"{run.path} is at step {saved.step} already, after {saved.seconds:.0f} s, with its best at "
                f"{saved.best_step}: give a larger --trainer.max_steps, --trainer.max_minutes or --trainer.patience"
            )
        run.name_best(saved)
        run.update_summary(status="finished")
        patience = " or --trainer.patience" if config.trainer.patience else ""
        print_status(
            f"{run.path} is finished; to go on, give a larger --trainer.max_steps or --trainer.max_minutes{patience}"
        )
        return 0
    return train(config, corpus, run, changed, saved)


def train(
    config: Config,
    corpus: "Corpus | Copying",
    run: "Run",
    changed: dict[str, Any] | None = None,
    saved: "CheckpointInfo | None" = None,
) -> int:
    """Train a new or a resumed run. Returns the exit code.

    Args:
        changed: the options that a resumed run has changed; None for a new run.
        saved: the checkpoint to resume from.
    """
    stages = Stages(STARTED)
    stages.end("options, corpus")
    quieten()
    keep_freed_memory()
    import_libraries(config, stages)
    from lm.training.checkpoints import Checkpoints
    from lm.training.datamodule import CorpusDataModule
    from lm.training.distill import add_teachers
    from lm.training.errors import user_errors
    from lm.training.progress import ProgressBar
    from lm.training.recorder import Recorder
    from lm.training.task import Task
    from lm.training.trackers import make_loggers

    config.trainer.precision, reason = resolve_precision(config, old=changed is not None)
    with user_errors():
        corpus = add_teachers(corpus, config)
        model = make_model(config, corpus, new=saved is None)
    task = Task(model, config, corpus.tokenizer.characters, Clock(config.trainer, saved.seconds if saved else 0.0))
    recorder = Recorder(run, corpus, task, stages)
    trainer = make_trainer(config, run, [recorder, Checkpoints(run, recorder), ProgressBar(recorder)])
    if is_first_process():
        if changed is None:
            run.start(config, corpus.tokenizer, corpus.digest)
        else:
            run.resume(config, corpus.tokenizer, saved, changed, corpus.digest)
        stages.end("model, run folder")
        trainer.loggers = make_loggers(config, run, saved.step if saved else 0)
        stages.end("wandb start")
    announce(config, corpus, model.parameters_total, trainer, run, reason)
    wait_for_first_process(GROUP_SECONDS)
    checkpoint = run.checkpoints / "last.ckpt" if saved else None
    return fit(trainer, task, CorpusDataModule(corpus, config), checkpoint, recorder, new=changed is None)


def make_model(config: Config, corpus: "Corpus | Copying", new: bool) -> "LanguageModel":
    """The model before its first step.

    Args:
        new: take the weights of `init`; those of a resumed run come from its checkpoint.
    """
    import torch

    from lm.model import LanguageModel
    from lm.runs.load import start_from

    torch.manual_seed(config.seed)
    model = LanguageModel(len(corpus.tokenizer), config.model)
    if config.init and new:
        start_from(model, config.init, corpus.tokenizer)
    if config.model.compile:
        model.compile()  # in place: the names of the weights stay as they are
    return model


def fit(trainer: "pl.Trainer", task: Any, data: Any, checkpoint: Path | None, recorder: "Recorder", new: bool) -> int:
    """Train, and write a summary however it ends. Returns the exit code.

    Args:
        new: remove the run folder if an error comes before training begins, so that the same command can be repeated.
    """
    from lm.training.errors import Diverged, Interrupted, user_errors
    from lm.training.trackers import log_best

    status = "failed"
    gc.freeze()  # or each step pays for searching what the libraries made at their import
    try:
        with user_errors():
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        status = "finished"
    except (Interrupted, SystemExit):  # Lightning exits at a Ctrl-C before our handler is installed
        status = "interrupted"
    except Diverged as error:
        status = "diverged"
        print_status(f"stopped: {error}. The last good checkpoint is kept; try a lower --optim.lr or --optim.muon_lr")
    except UserError as error:
        if new and not recorder.began:
            if is_first_process():
                for logger in trainer.loggers:
                    logger.finalize("failed")
                recorder.run.remove()
            raise
        raise UserError(
            f"{str(error).rstrip('.')}. Then go on with: char-lm train --resume {recorder.run.path}"
        ) from None
    finally:
        gc.unfreeze()
        if is_first_process() and recorder.run.exists:
            with suppress(UserError):  # the disk may still be full
                recorder.write_summary(trainer, status)
    if is_first_process():
        log_best(task.config, recorder.run, trainer.loggers)
        report(recorder.run, status)
    return {"finished": 0, "interrupted": 130}.get(status, 1)


def announce(
    config: Config, corpus: "Corpus | Copying", parameters: int, trainer: "pl.Trainer", run: "Run", reason: str
) -> None:
    """Print what is going to be trained; `reason` says why at this precision."""
    from lm.corpora.corpus import Corpus

    budget = f"{config.trainer.max_steps} steps"
    if config.trainer.max_minutes:
        budget = f"{config.trainer.max_minutes:g} minutes, validation excluded"
    if config.trainer.patience:
        budget += f", or {config.trainer.patience} steps without a new best validation loss"
    kind, units = trainer.strategy.root_device.type, config.data.vocabulary
    shape = f"{config.model.layers} layers of width {config.model.width}"
    print_status(f"model    {config.mixer_name}, {shape}: {parameters:,} parameters")
    print_status(f"corpus   {config.data.corpus}: {corpus}")
    if isinstance(corpus, Corpus) and (length := len(corpus.validation) - 1) > config.eval.chars:
        print_status(f"scored   {config.eval.chars:,} of the {length:,} {units} held out, in evenly spread stretches")
    print_status(f"batches  {config.data.batch_size} x {config.data.context} {units}, {config.data.sampling}")
    print_status(f"device   {trainer.num_devices * trainer.num_nodes} x {kind}, precision {trainer.precision}", end="")
    print_status(f" ({reason})" if reason else "")
    print_status(f"budget   {budget}")
    print_status(f"run      {run.path}")


def report(run: "Run", status: str) -> None:
    """Print how training ended, and what to do next."""
    summary = run.summary()
    unit = run.config().data.unit
    if "step" in summary:
        memory = f", {summary['peak_memory_mb']:,.0f} MB" if "peak_memory_mb" in summary else ""
        print_status(f"\n{status} after {summary['step']} steps, {summary['train_seconds']:.0f} s of training", end="")
        print_status(f" ({summary['chars_per_second']:,.0f} {unit}s/s{memory})")
    if best := summary.get("best"):
        print_status(f"best validation loss: {best['val/loss']:.4f} nats/{unit[:4]} windowed", end="")
        print_status(f", {best['val/loss_streaming']:.4f} streaming" if "val/loss_streaming" in best else "", end="")
        print_status(f"; accuracy {best['val/accuracy']:.2%}" if "val/accuracy" in best else "")
    print_status(f"the run is in {run.path}")
    if status == "finished":
        print_status(f"write text:    char-lm generate {run.path}\ncompare runs:  char-lm compare {run.path.parent}/*")
    else:
        print_status(f"go on with it: char-lm train --resume {run.path}")
