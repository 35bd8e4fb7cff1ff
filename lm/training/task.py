"""The Lightning side of training: the module that wraps a model, and the data module. They hold no logic of their own
that could live without Lightning.
"""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from lm.config.options import COPYING, Config
from lm.corpora.copying import IGNORED
from lm.model import LanguageModel, ModelState
from lm.training.clock import Clock
from lm.training.loss import nll
from lm.training.optim import lr_factor, make_optimizer


class Task(pl.LightningModule):
    """Next-character prediction, or the answers of a synthetic task; targets that are IGNORED count for nothing.

    Args:
        model: what is trained.
        config: of the whole run.
        characters: the vocabulary, kept in checkpoints so that each is complete by itself.
        clock: tells the schedule how far training is.
    """

    def __init__(self, model: LanguageModel, config: Config, characters: str, clock: Clock) -> None:
        super().__init__()
        self.model, self.config, self.characters, self.clock = model, config, characters, clock
        self.val_loss, self.val_streaming = MeanMetric(), MeanMetric()
        self.val_perplexity = Perplexity(ignore_index=IGNORED)
        self.val_accuracy = MulticlassAccuracy(len(characters) + 1, average="micro", ignore_index=IGNORED)
        self.grad_norm = torch.zeros(())
        self.carried: dict[int, ModelState] = {}  # state after each part of the last batch, with data.sampling streams
        self._streaming_state: ModelState | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config.optim)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reseed everything random in this step, and set its learning rate: both functions of the step alone."""
        part = batch["part"]
        seed = np.random.SeedSequence([self.config.seed, self.global_step, part, self.global_rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        progress = self.clock.progress(self.global_step)
        if self.trainer.world_size > 1 and self.clock.budget.max_steps is None:
            progress = self.trainer.strategy.broadcast(progress)  # the devices' clocks differ, their rates must not
        factor = lr_factor(self.config.optim, self.global_step, progress)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["peak_lr"] * factor

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state = None if batch["fresh"] else self.carried.get(batch["part"])
        logits, state = self.model(batch["x"], state)
        if self.config.data.sampling == "streams":
            self.carried[batch["part"]] = tuple(tuple(part.detach() for part in layer) for layer in state)
        return nll(logits, batch["y"])

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Clip by the norm over all parameters, and keep that norm as a metric."""
        largest = self.config.optim.clip or float("inf")
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest)

    def on_validation_epoch_start(self) -> None:
        self._streaming_state = None

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0: windows, each from the initial state. Loader 1: the split as one sequence."""
        x, y = batch
        logits, state = self.model(x, self._streaming_state if dataloader_idx else None)
        weight = (y != IGNORED).sum()
        if dataloader_idx:
            self._streaming_state = state
            self.val_streaming.update(nll(logits, y), weight=weight)
        else:
            self.val_loss.update(nll(logits, y), weight=weight)
            self.val_perplexity.update(logits.float(), y)
            if self.config.data.corpus == COPYING:
                self.val_accuracy.update(logits.flatten(0, 1), y.flatten())

    def validation_results(self) -> dict[str, float]:
        """The metrics of the validation that has just ended, over all devices; resets them."""
        metrics = {
            "val/loss": self.val_loss,
            "val/loss_streaming": self.val_streaming,
            "val/perplexity": self.val_perplexity,
            "val/accuracy": self.val_accuracy,
        }
        results = {name: metric.compute().item() for name, metric in metrics.items() if metric.update_called}
        for metric in metrics.values():
            metric.reset()
        return results | {"val/bpc": results["val/loss"] / float(np.log(2))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config.to_yaml()
        checkpoint["characters"] = self.characters
        checkpoint["carried"] = self.carried

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = (group for state in checkpoint["optimizer_states"] for group in state["param_groups"])
        for old, new in zip(saved, make_optimizer(self.model, self.config.optim).param_groups, strict=True):
            old |= {name: value for name, value in new.items() if name != "params"}  # the configuration has the say
        carried = checkpoint["carried"]
        self.carried = {
            part: tuple(tuple(tensor.to(self.device) for tensor in layer) for layer in state)
            for part, state in carried.items()
        }
