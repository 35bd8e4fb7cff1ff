"""The options of training, as documents and old runs rely on them: every default, every bound, every choice."""

import pytest
import yaml

from lm.config.options import FIELDS, MIXERS, Config
from lm.config.resolve import parse
from lm.files import UserError

DEFAULTS = """
name: null, seed: 1, runs: runs, init: null
data: {corpus: tiny_shakespeare, context: 128, batch_size: 12, sampling: shuffled, vocabulary: characters, column: text,
       split: null, revision: null, tuning: false, copying: {tokens: 16, vocabulary: 16, shortest: 0, growth: 0}}
model: {mixer: mingru, options: {expansion: null, convolution: null, gate_bias: null, d_state: null, heads: null,
        window: null, positions: null}, width: 128, layers: 3, mlp: relu2, mlp_expansion: 4.0, residual_init: 0.0,
        dropout: 0.0, compile: false}
optim: {name: muon, lr: 0.01, muon_lr: 0.02, weight_decay: 0.1, final_weight_decay: null, beta1: 0.9, beta2: 0.99,
        momentum: 0.95, muon_beta2: 0.95, muon_polynomials: polar4, warmup_steps: 50, schedule: linear, decay: 0.2,
        final_lr: 0.0, cycles: 1, ema: 0.0, clip: 1.0}
distill: {teachers: [], weight: 0.5}
trainer: {max_steps: null, max_minutes: 2.0, patience: 0, precision: auto, accumulate: 1, chunk: 0, split: batch,
          accelerator: auto, devices: 1, strategy: auto, num_nodes: 1}
eval: {every: 250, sample_chars: 240, prompt: "\\n", chars: 1000000, streaming: true}
log: {every: 10, wandb: offline, project: char-lm, group: null, artifacts: false, tensorboard: false}
"""
LARGEST = 2**31 - 1
WHOLE = {
    "seed": (0, 2**63 - 1), "data.context": (1, LARGEST), "data.batch_size": (1, 2**20),
    "data.copying.tokens": (1, LARGEST), "data.copying.vocabulary": (1, LARGEST), "data.copying.shortest": (0, LARGEST),
    "data.copying.growth": (0, LARGEST),
    "model.options.convolution": (0, 1000), "model.options.d_state": (1, 2**16), "model.options.heads": (1, LARGEST),
    "model.options.window": (1, LARGEST), "model.width": (1, 2**16), "model.layers": (1, 1000),
    "optim.warmup_steps": (0, LARGEST), "trainer.max_steps": (1, LARGEST), "trainer.accumulate": (1, LARGEST),
    "trainer.devices": (1, LARGEST), "trainer.num_nodes": (1, LARGEST), "eval.every": (1, LARGEST),
    "eval.sample_chars": (0, LARGEST), "eval.chars": (1, LARGEST), "trainer.chunk": (0, LARGEST),
    "trainer.patience": (0, LARGEST), "optim.cycles": (1, 1000), "log.every": (1, LARGEST),
}  # fmt: skip
"""The smallest and the largest value of options that are whole numbers."""
NUMBERS = {
    "model.options.expansion": (1e-9, 100, 0, 100.1), "model.options.gate_bias": (-1000, 1000, -1000.1, 1000.1),
    "model.mlp_expansion": (1e-9, 100, 0, 100.1), "model.residual_init": (0, 100, -1e-9, 100.1),
    "model.dropout": (0, 0.999, -1e-9, 1),
    "optim.lr": (1e-9, 1000, 0, 1001), "optim.muon_lr": (1e-9, 1000, 0, 1001),
    "optim.weight_decay": (0, 1e9, -1e-9, 1e10), "optim.beta1": (0, 0.999, -1e-9, 1),
    "optim.beta2": (0, 0.999, -1e-9, 1), "optim.momentum": (0, 0.999, -1e-9, 1),
    "optim.muon_beta2": (0, 0.999, -1e-9, 1), "optim.decay": (0, 1, -1e-9, 1.001),
    "optim.ema": (0, 0.999, -1e-9, 1),
    "optim.final_lr": (0, 1, -1e-9, 1.001), "optim.clip": (0, 1e9, -1e-9, 1e10),
    "optim.final_weight_decay": (0, 1e9, -1e-9, 1e10), "distill.weight": (0, 1, -1e-9, 1.001),
    "trainer.max_minutes": (1e-9, 1e9, 0, 1e10),
}  # fmt: skip
"""Of options that are any numbers: a smallest and a largest value, a value that is too small, one that is too large."""
CHOICES = {
    "data.sampling": ["shuffled", "windows", "streams"],
    "data.vocabulary": ["characters", "bytes"],
    "model.mixer": ["mingru", "minlstm", "attention", "mamba", "s4d", "gru", "lstm", "gru_reference", "lstm_reference"],
    "model.mlp": ["relu2", "gelu", "swiglu", "none"],
    "model.options.positions": ["rotary", "learned"],
    "model.compile": [False, True],
    "data.tuning": [False, True],
    "eval.streaming": [False, True],
    "optim.name": ["muon", "adamw"],
    "optim.muon_polynomials": ["polar3", "polar4", "polar5", "jordan5"],
    "optim.schedule": ["linear", "cosine", "constant"],
    "trainer.precision": ["auto", 32, "bf16-mixed", "16-mixed"],
    "trainer.split": ["batch", "time"],
    "trainer.accelerator": ["auto", "cpu", "gpu"],
    "log.wandb": ["disabled", "offline", "online"],
    "log.artifacts": [False, True],
    "log.tensorboard": [False, True],
}
TEXTS = ["name", "runs", "init", "data.corpus", "data.column", "data.split", "data.revision", "trainer.strategy",
         "eval.prompt", "log.project", "log.group"]  # fmt: skip
LISTS = ["distill.teachers"]


def test_every_default():
    first, *sections = DEFAULTS.strip().split("\n", 1)
    expected = yaml.safe_load("{" + first + "}") | yaml.safe_load(sections[0])
    actual = yaml.safe_load(parse([]).to_yaml())
    assert actual == {"version": 1} | expected


def test_every_option_is_in_one_table():
    assert sorted([*WHOLE, *NUMBERS, *CHOICES, *TEXTS, *LISTS]) == sorted(FIELDS)
    assert CHOICES["model.mixer"] == list(MIXERS)


CASES = [(key, (low, high), (low - 1, high + 1)) for key, (low, high) in WHOLE.items()]
CASES += [(key, right, wrong) for key, (*right, low, high) in NUMBERS.items() for wrong in [(low, high)]]
CASES += [(key, right, ("no such choice", 17)) for key, right in CHOICES.items()]
CASES += [(key, ("a", "7"), (7, True, "a" * 256 if key != "eval.prompt" else "\ud800")) for key in TEXTS]


CASES += [(key, ([], ["a", "7"]), ("a", [7], ["a" * 256])) for key in LISTS]


@pytest.mark.parametrize(("key", "right", "wrong"), CASES)
def test_every_bound_and_choice(key, right, wrong):
    for value in right:
        FIELDS[key].check(value)
    for value in wrong:
        with pytest.raises(UserError, match=rf"^{key}( must be |: | has a character )"):
            FIELDS[key].check(value)


@pytest.mark.parametrize("key", [*WHOLE, *NUMBERS])
@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), -float("inf"), [1]])
def test_numbers_are_finite_and_of_their_type(key, value):
    with pytest.raises(UserError, match=rf"^{key}(: expected | must be a finite number)"):
        FIELDS[key].check(value)


def test_null_stands_for_a_default_where_there_may_be_none():
    optional = {key for key in FIELDS if Config().flat()[key] is None}
    for key, field in FIELDS.items():
        if key in optional:
            field.check(None)
        else:
            with pytest.raises(UserError):
                field.check(None)
