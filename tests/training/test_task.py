"""The Lightning module, method by method, against values worked out in plain torch."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lm.config.options import COPYING, Config, DataConfig, ModelConfig, OptimConfig, TrainerConfig
from lm.corpora.copying import IGNORED
from lm.model import LanguageModel
from lm.training.clock import Clock
from lm.training.loop import Batch
from lm.training.task import Task

CHARACTERS = "abcd"
V = len(CHARACTERS) + 1


def make_task(budget: TrainerConfig | None = None, optim: OptimConfig | None = None, **data) -> Task:
    torch.manual_seed(0)
    budget = budget or TrainerConfig(max_steps=10)
    config = Config(
        seed=7,
        data=DataConfig(**data),
        model=ModelConfig(width=8, layers=2, residual_init=1.0),
        optim=optim or OptimConfig(),
        trainer=budget,
    )
    model = LanguageModel(V, config.model)
    torch.nn.init.normal_(model.head.weight)
    return Task(model, config, CHARACTERS, Clock(budget))


def attach(task: Task, step: int, world_size: int = 1, broadcast=None) -> torch.optim.Optimizer:
    """Give the task what it reads of a trainer: this step, rank 2 of so many. Returns the optimiser."""
    optimizer = task.configure_optimizers()
    strategy = SimpleNamespace(broadcast=broadcast)
    task._trainer = SimpleNamespace(
        global_step=step, global_rank=2, world_size=world_size, optimizers=[optimizer], strategy=strategy
    )
    return optimizer


def batch(part: int = 0, fresh: bool = True, T: int = 9) -> Batch:
    ids = torch.randint(0, V, (3, T + 1), generator=torch.Generator().manual_seed(part + 2 * fresh))
    return Batch(ids[:, :-1], ids[:, 1:], part, fresh)


def losses(logits: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Minus the log-probability of each target that counts."""
    table = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    pairs = zip(table.flatten(0, 1), y.flatten().tolist(), strict=True)
    return [-row[target].item() for row, target in pairs if target >= 0]


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_a_batch_sets_the_seed_and_the_learning_rate_of_its_step():
    task = make_task()
    optimizer = attach(task, step=3)
    task.on_train_batch_start(batch(part=1), 0)
    factor = 4 / 50 * (1 - 3 / 10)  # warm-up over 50 steps, linear decay over 10
    assert rates(optimizer) == pytest.approx([0.01 * factor, 0.01 * factor, 0.02 * factor])
    state = np.random.SeedSequence([7, 3, 1, 2]).generate_state(1, np.uint64)
    assert torch.initial_seed() == int(state[0]) // 2


def test_devices_follow_one_clock_and_need_none_where_steps_are_counted():
    minutes = make_task(TrainerConfig(max_minutes=1.0), OptimConfig(warmup_steps=0))
    minutes.clock.seconds = 6.0
    optimizer = attach(minutes, step=3, world_size=2, broadcast={0.1: 0.25}.get)
    minutes.on_train_batch_start(batch(), 0)
    assert rates(optimizer) == pytest.approx([0.0075, 0.0075, 0.015])
    alone = attach(minutes, step=3)  # without another device there is nothing to broadcast to
    minutes.on_train_batch_start(batch(), 0)
    assert rates(alone) == pytest.approx([0.009, 0.009, 0.018])
    steps = make_task(optim=OptimConfig(warmup_steps=0))
    optimizer = attach(steps, step=5, world_size=2)
    steps.on_train_batch_start(batch(), 0)
    assert rates(optimizer) == pytest.approx([0.005, 0.005, 0.01])


def test_windows_start_from_the_initial_state_and_streams_go_on():
    first, second = batch(fresh=True), batch(fresh=False)
    windows, streams = make_task(sampling="windows"), make_task(sampling="streams")
    model = windows.model
    logits, state = model(first.x)
    alone, carried = model(second.x)[0], model(second.x, state)[0]
    for task, later in ((windows, alone), (streams, carried)):
        assert task.training_step(first, 0).item() == pytest.approx(np.mean(losses(logits, first.y)), rel=1e-5)
        assert task.training_step(second, 1).item() == pytest.approx(np.mean(losses(later, second.y)), rel=1e-5)
    assert abs(np.mean(losses(alone, second.y)) - np.mean(losses(carried, second.y))) > 1e-3
    assert windows.carried == {} and set(streams.carried) == {0}
    assert not any(tensor.requires_grad for layer in streams.carried[0] for tensor in layer)
    restarted = streams.training_step(first, 2).item()
    assert restarted == pytest.approx(np.mean(losses(logits, first.y)), rel=1e-5)


@pytest.mark.parametrize("clip, factor", [(0.5, 0.5 / 3), (10.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_by_their_norm_which_is_kept(clip, factor):
    task = make_task(optim=OptimConfig(clip=clip))
    parameters = list(task.model.parameters())
    count = sum(p.numel() for p in parameters)
    for p in parameters:
        p.grad = torch.full_like(p, 3 / count**0.5)  # norm 3 over all of them
    optimizer = task.configure_optimizers()
    task.configure_gradient_clipping(optimizer, gradient_clip_val=None, gradient_clip_algorithm=None)
    assert task.grad_norm.item() == pytest.approx(3, rel=1e-5)
    for p in parameters:
        torch.testing.assert_close(p.grad, torch.full_like(p, factor * 3 / count**0.5), rtol=1e-4, atol=0)


def test_validation_of_a_text_by_hand():
    task = make_task()
    pieces = [batch(part, T=T) for part, T in ((0, 9), (1, 9), (2, 4))]
    ids = torch.randint(0, V, (1, 30))
    stream = [(ids[:, i : i + 10], ids[:, i + 1 : i + 11]) for i in (0, 10)] + [(ids[:, 20:29], ids[:, 21:30])]
    empty = torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), IGNORED)
    windowed = [loss for piece in pieces for loss in losses(task.model(piece.x)[0], piece.y)]
    streamed = losses(task.model(ids[:, :-1])[0], ids[:, 1:])
    assert (len(windowed), len(streamed)) == (66, 29)
    expected = {
        "val/loss": np.mean(windowed),
        "val/loss_streaming": np.mean(streamed),
        "val/perplexity": math.exp(np.mean(windowed)),
        "val/bpc": np.mean(windowed) / math.log(2),
    }
    for _ in range(2):  # the second starts afresh
        task.on_validation_epoch_start()
        with torch.no_grad():
            task.validation_step(stream[0], 0, 1)  # in any order: windows take no state, and leave that of the stream
            for i, piece in enumerate(pieces):
                task.validation_step((piece.x, piece.y), i)
            task.validation_step(empty, 3)
            for i, piece in enumerate(stream[1:], 1):
                task.validation_step(piece, i, 1)
            task.validation_step(empty, 3, 1)
        assert task.validation_results() == pytest.approx(expected, rel=1e-5)


def test_validation_of_copying_by_hand():
    task = make_task(corpus=COPYING)
    x = torch.randint(0, V, (4, 12))
    y = torch.randint(0, V, (4, 12))
    y[:, :7] = IGNORED
    y[3, 8:] = IGNORED
    logits = task.model(x)[0]
    y[0, 7:10] = logits[0, 7:10].argmax(-1)
    by_hand = losses(logits, y)
    best = logits.argmax(-1)
    right = sum(best[i, t].item() == y[i, t].item() for i in range(4) for t in range(12))
    assert len(by_hand) == 16 and 3 <= right < 16
    with torch.no_grad():
        task.on_validation_epoch_start()
        task.validation_step((x[:1], y[:1]), 0)
        task.validation_step((x[1:], y[1:]), 1)
    mean = np.mean(by_hand)
    assert task.validation_results() == pytest.approx(
        {
            "val/loss": mean,
            "val/perplexity": math.exp(mean),
            "val/accuracy": right / 16,
            "val/bpc": mean / math.log(2),
        },
        rel=1e-5,
    )


def test_logits_of_half_precision_are_scored_in_float32():
    task = make_task()
    x, y = torch.randint(0, V, (1, 6)), torch.randint(0, V, (1, 6))
    half = (3 * task.model(x)[0]).bfloat16()
    task.model.register_forward_hook(lambda *_: (half, None))
    with torch.no_grad():
        task.validation_step((x, y), 0)
        task.validation_step((x, y), 0, 1)
    mean = np.mean(losses(half, y))
    assert task.validation_results() == pytest.approx(
        {"val/loss": mean, "val/loss_streaming": mean, "val/perplexity": math.exp(mean), "val/bpc": mean / math.log(2)},
        rel=1e-5,
    )


def test_a_checkpoint_has_all_that_a_run_needs_and_the_configuration_sets_the_optimiser():
    task = make_task(sampling="streams")
    task.training_step(batch(), 0)
    optimizer = task.configure_optimizers()
    checkpoint = {"optimizer_states": [optimizer.state_dict()]}
    task.on_save_checkpoint(checkpoint)
    assert checkpoint["config"] == task.config.to_yaml() and checkpoint["characters"] == CHARACTERS
    other = make_task(optim=OptimConfig(lr=0.5, muon_lr=0.25, weight_decay=0.0, momentum=0.5, beta1=0.3, beta2=0.4))
    other.on_load_checkpoint(checkpoint)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [group["peak_lr"] for group in groups] == [0.5, 0.5, 0.25]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0, 0.0]
    assert [group["betas"] for group in groups[:2]] == [(0.3, 0.4)] * 2 and groups[2]["momentum"] == 0.5
    indices = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    assert [group["params"] for group in groups] == indices
    assert set(other.carried) == {0}
    for ours, theirs in zip(other.carried[0], task.carried[0], strict=True):
        assert isinstance(ours, tuple) and all(map(torch.equal, ours, theirs))
