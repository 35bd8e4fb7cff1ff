"""Lightning's trainer: devices, precision."""

import logging
import os
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lm.config.options import Config
from lm.files import UserError
from lm.training.processes import give_up_after

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lm.runs.folder import Run


GROUP_SECONDS = 60
"""After which a process no longer waits for another one."""


def quieten() -> None:
    """Hide Lightning's hints about settings that are meant, and what torch logs of errors that become one line."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    for name in ("pytorch", "pytorch.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*isinstance.treespec, LeafSpec.*", ".*srun.*"):
        warnings.filterwarnings("ignore", message)


def make_trainer(config: Config, run: "Run", callbacks: list[Any]) -> "pl.Trainer":
    """Lightning's trainer for one endless epoch, which the recorder ends.

    Raises:
        UserError: this machine does not have the devices, or Lightning the strategy.
    """
    import lightning.pytorch as pl
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lm.training.checkpoints import AtomicCheckpointIO

    wanted = config.trainer
    try:
        return pl.Trainer(
            accelerator=wanted.accelerator,
            devices=wanted.devices,
            num_nodes=wanted.num_nodes,
            strategy=strategy_of(config),
            precision=wanted.precision,  # type: ignore[arg-type]
            max_epochs=-1,
            max_steps=-1,
            accumulate_grad_batches=wanted.accumulate,
            val_check_interval=config.eval.every * wanted.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run.path,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        asked = f"accelerator {wanted.accelerator}, {wanted.devices} devices, strategy {wanted.strategy!r}"
        reason = str(error).split(". ")[0]
        raise UserError(f"trainer: {asked} cannot be had here: {reason}; the default, auto, can") from None


def strategy_of(config: Config) -> Any:
    """Lightning's strategy; on several devices a process group that gives up after GROUP_SECONDS.

    Raises:
        UserError: the strategy cuts matrices into pieces.
    """
    wanted = config.trainer
    if any(name in wanted.strategy for name in ("fsdp", "deepspeed", "model_parallel")):
        raise UserError(
            f"trainer.strategy {wanted.strategy}: Muon and the clipping of gradients need whole matrices, and no model "
            "here is too large for one device; use ddp"
        )
    if wanted.devices * wanted.num_nodes == 1 or wanted.strategy not in ("auto", "ddp"):
        return wanted.strategy
    from lightning.pytorch.strategies import DDPStrategy

    class Strategy(DDPStrategy):
        def setup_distributed(self) -> None:
            with give_up_after(2 * GROUP_SECONDS):  # the first process may wait as long for others, twice
                super().setup_distributed()

    return Strategy(timeout=timedelta(seconds=GROUP_SECONDS))


def resolve_precision(config: Config, old: bool = False) -> tuple[Any, str]:
    """The precision of a configuration, for `auto` the fastest of the device; and the reason, empty if it was given.

    Args:
        old: it is the configuration of a run from the time when `auto` meant 32 on every CPU.

    Raises:
        UserError: 16-mixed without a GPU.
    """
    import torch

    wanted = config.trainer
    gpu = wanted.accelerator != "cpu" and torch.cuda.is_available()
    if wanted.precision == "16-mixed" and not gpu:
        raise UserError("trainer.precision 16-mixed needs a GPU; on a CPU use 32 or bf16-mixed")
    if wanted.precision != "auto":
        return wanted.precision, ""
    if old and not gpu:
        return 32, "as before"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_multiplies_bfloat16()
    reason = f"the {'GPU' if gpu else 'processor'} {'multiplies' if native else 'does not multiply'} bfloat16"
    return "bf16-mixed" if native else 32, reason


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it (AVX512_BF16 or AMX), and torch uses them."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
