"""The Lightning module around a model: training steps (the functions of `lm.training.loop`) and validation metrics."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from lm.config.options import COPYING, Config
from lm.corpora.copying import IGNORED
from lm.model import LanguageModel, ModelState
from lm.training.clock import Clock
from lm.training.loop import Batch, seed_part, training_loss
from lm.training.loss import nll
from lm.training.optim import clip_gradients, make_optimizer, set_learning_rate


class Task(pl.LightningModule):
    """Next-character prediction, or the answers of a synthetic task; targets that are IGNORED are not scored.

    Args:
        model: the model to train.
        config: the configuration of the run.
        characters: the vocabulary, saved in each checkpoint so that it can be used alone.
        clock: tells the schedule which share of the budget is used.
    """

    def __init__(self, model: LanguageModel, config: Config, characters: str, clock: Clock) -> None:
        super().__init__()
        self.model, self.config, self.characters, self.clock = model, config, characters, clock
        self.copying = config.data.corpus == COPYING
        self.val_loss, self.val_streaming = MeanMetric(), MeanMetric()
        self.val_perplexity = Perplexity(ignore_index=IGNORED)
        self.val_accuracy = MulticlassAccuracy(len(characters) + 1, average="micro", ignore_index=IGNORED)
        self.grad_norm = torch.zeros(())
        self.carried: dict[int, ModelState] = {}  # state after each part of the last batch, with data.sampling streams
        self._streaming_state: ModelState | None = None
        self.average: list[Tensor] = []
        """with optim.ema, the average of each parameter; during validation, which reads that, the parameter itself"""
        self._validating = False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config.optim)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers of a part, and set the learning rate of its step."""
        seed_part(self.config.seed, self.global_step, batch.part, self.global_rank)
        progress = self.clock.progress(self.global_step)
        if self.trainer.world_size > 1 and self.clock.budget.max_steps is None:
            progress = self.trainer.strategy.broadcast(progress)  # the devices' clocks differ, their rates must not
        set_learning_rate(self.trainer.optimizers[0], self.config.optim, self.global_step, progress)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        states = self.carried if self.config.data.sampling == "streams" else {}
        return training_loss(self.model, batch, states, self.config)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:  # type: ignore[override]
        self.grad_norm = clip_gradients(optimizer, self.config.optim.clip)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take the step, and move the average by 1 - optim.ema towards the weights, faster in the first steps."""
        super().optimizer_step(*arguments, **options)
        if decay := self.config.optim.ema:
            parameters = [p.detach() for p in self.model.parameters()]
            self.average = self.average or [p.clone() for p in parameters]
            step = self.global_step + 1
            torch._foreach_lerp_(self.average, parameters, 1 - min(decay, step / (step + 9)))

    def on_validation_start(self) -> None:
        self._exchange()
        self._validating = True

    def on_validation_end(self) -> None:
        """Comes after the callbacks: the sample and the checkpoint are those of the average."""
        self._exchange()
        self._validating = False

    @torch.no_grad()
    def _exchange(self) -> None:
        for p, other in zip(self.model.parameters(), self.average, strict=bool(self.average)):
            kept = p.clone()
            p.copy_(other)
            other.copy_(kept)

    def on_validation_epoch_start(self) -> None:
        self._streaming_state = None

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0: windows, each from the initial state. Loader 1: the split as one sequence."""
        state = self._streaming_state if dataloader_idx else None
        chunk = self.config.trainer.chunk or batch[0].shape[1]
        for x, y in zip(*(part.split(chunk, dim=1) for part in batch), strict=True):
            logits, state = self.model(x, state)
            if weight := (y != IGNORED).sum():  # none in the piece of a device without windows
                self._score(logits, y, weight, dataloader_idx)
        if dataloader_idx:
            self._streaming_state = state

    def _score(self, logits: Tensor, y: Tensor, weight: Tensor, dataloader_idx: int) -> None:
        if dataloader_idx:
            self.val_streaming.update(nll(logits, y), weight=weight)
            return
        self.val_loss.update(nll(logits, y), weight=weight)
        self.val_perplexity.update(logits.float(), y)
        if self.copying:
            self.val_accuracy.update(logits.flatten(0, 1), y.flatten())

    def validation_results(self) -> dict[str, float]:
        """The metrics of the validation that has just ended, over all devices; resets them."""
        metrics: dict[str, Metric] = {"val/loss": self.val_loss, "val/perplexity": self.val_perplexity}
        if self.copying:
            metrics["val/accuracy"] = self.val_accuracy
        elif self.config.eval.streaming:
            metrics["val/loss_streaming"] = self.val_streaming
        results = {name: metric.compute().item() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return results | {"val/bpc": results["val/loss"] / math.log(2)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config.to_yaml()
        checkpoint["characters"] = self.characters
        checkpoint["carried"] = self.carried
        if self.average:  # whoever reads the checkpoint gets the average; training goes on with the others
            names = [name for name, _ in self.named_parameters()]
            weights = checkpoint["state_dict"]
            others = dict(zip(names, self.average, strict=True))
            checkpoint["state_dict"] = weights if self._validating else weights | others
            checkpoint["trained"] = others if self._validating else {name: weights[name] for name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the optimiser's options from the configuration: a resumed run may have changed them."""
        saved = (group for state in checkpoint["optimizer_states"] for group in state["param_groups"])
        for old, new in zip(saved, make_optimizer(self.model, self.config.optim).param_groups, strict=True):
            old |= {name: value for name, value in new.items() if name != "params"}
        if trained := checkpoint.get("trained"):
            if self.config.optim.ema:
                self.average = [checkpoint["state_dict"][name].to(self.device) for name in trained]
            checkpoint["state_dict"] |= trained
        self.carried = {
            part: tuple(tuple(tensor.to(self.device) for tensor in layer) for layer in state)
            for part, state in checkpoint["carried"].items()
        }
