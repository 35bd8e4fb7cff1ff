"""The options of training: typed dataclasses, one docstring per field, which becomes its line in `--help`."""

import functools
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lm.config.fields import Count, Fraction, FreeText, Natural, NonNegative, Positive, Range, Share, fields
from lm.config.strict_yaml import write_yaml

VERSION = 1
"""Version of the run folder and its files. It goes up when an older program can no longer read them correctly."""
MIXERS = {
    "mingru": "mingru.MinGRU",
    "minlstm": "minlstm.MinLSTM",
    "attention": "attention.Attention",
    "mamba": "mamba.Mamba",
    "s4d": "s4d.S4D",
    "gru": "gru.GRU",
    "lstm": "lstm.LSTM",
    "gru_reference": "gru.GRUReference",
    "lstm_reference": "lstm.LSTMReference",
}
"""Every mixer: its name, and its module and class in `lm.mixers`, which imports them. A new mixer is one more line."""
if TYPE_CHECKING:
    MixerName = str
else:
    MixerName = Literal[tuple(MIXERS)]
Weights = Literal["float32", "bfloat16", "int8"]
"""How the matrices of a model are kept for decoding."""
COPYING = "selective_copying"
"""The value of data.corpus that is a synthetic task (`lm.corpora.copying`) instead of a text."""


@dataclass
class CopyingOptions:
    """The task selective_copying, whose problems are data.context characters long."""

    tokens: Count = 16
    """characters to remember and repeat at the end"""
    vocabulary: Count = 16
    """different characters, noise and mark included"""
    shortest: Natural = 0
    """train on problems of this length and longer; 0: all of data.context"""
    growth: Natural = 0
    """steps until those of data.context are among them"""


@dataclass
class DataConfig:
    """The training data and its batches."""

    corpus: str = "tiny_shakespeare"
    """tiny_shakespeare, shakespeare, a text file, folder or glob, or the id of a data set on the Hub; or the synthetic
    task selective_copying"""
    context: Count = 128
    """characters in a training sequence, and in a window of the windowed validation loss"""
    batch_size: Annotated[int, Range(least=1, most=2**20)] = 12
    """sequences in one optimiser step, on all devices together"""
    sampling: Literal["shuffled", "windows", "streams"] = "shuffled"
    """windows from a zero state, each once in an epoch (shuffled) or at random (windows); or contiguous streams, their
    state carried on"""
    vocabulary: Literal["characters", "bytes"] = "characters"
    """the characters of a text, or the bytes of any file"""
    column: str = "text"
    """column with the text (Hub, parquet, json and csv corpora)"""
    split: str | None = None
    """split to take (Hub corpora; default: all, in their order)"""
    revision: str | None = None
    """revision of the data set (Hub corpora)"""
    tuning: bool = False
    """to choose options: validate on the last tenth of the training part instead"""
    copying: CopyingOptions = field(default_factory=CopyingOptions)
    """the task selective_copying"""

    @property
    def unit(self) -> str:
        """What is counted in `context` and in losses: a character or a byte."""
        return self.vocabulary.removesuffix("s")


@dataclass
class MixerOptions:
    """Options of the mixers; None leaves a mixer's own default."""

    expansion: Annotated[float, Range(above=0, most=100)] | None = None
    """all but attention and s4d: hidden channels over the width (default 2)"""
    convolution: Annotated[int, Range(least=0, most=1000)] | None = None
    """mingru, minlstm, mamba: size of the causal convolution (default 4; none: 0)"""
    gate_bias: Annotated[float, Range(least=-1000, most=1000)] | None = None
    """mingru, minlstm, gru, lstm: initial bias of the gates towards keeping the past (default 0; lstm: 1)"""
    d_state: Annotated[int, Range(least=1, most=2**16)] | None = None
    """mamba, s4d: size of the state of each channel (default 16; s4d: 64)"""
    heads: Count | None = None
    """attention: number of heads (default: width / 32)"""
    window: Count | None = None
    """attention: characters that it sees and keeps (default: data.context)"""
    positions: Literal["rotary", "learned"] | None = None
    """attention: learned is without norms of queries and keys"""


@dataclass
class ModelConfig:
    """The network."""

    mixer: MixerName | list[MixerName] = "mingru"
    """what mixes over time, or a list with one for each layer; gru_reference and lstm_reference are for timing"""
    options: MixerOptions = field(default_factory=MixerOptions)
    """options of the mixers; each goes to the mixers that have it"""
    width: Annotated[int, Range(least=1, most=2**16)] = 128
    """channels of the residual stream"""
    layers: Annotated[int, Range(least=1, most=1000)] = 3
    """number of blocks"""
    mlp: Literal["relu2", "gelu", "swiglu", "none"] = "relu2"
    """activation of the MLP, or none for blocks without one"""
    mlp_expansion: Annotated[float, Range(above=0, most=100)] = 4.0
    """hidden channels of the MLP as a multiple of the width (swiglu takes two thirds of it: equal parameters)"""
    residual_init: Annotated[float, Range(least=0, most=100)] = 0.0
    """initial size of the matrices that write into the residual stream; 0: blocks add nothing at first, 1: GPT-2's"""
    dropout: Fraction = 0.0
    """dropout on the embedding and on the output of each mixer and MLP"""
    compile: bool = False
    """torch.compile the model; needs a C++ compiler, and a minute at the start"""


@dataclass
class OptimConfig:
    """The optimiser and the learning-rate schedule."""

    name: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the blocks' matrices and AdamW for the rest; adamw: AdamW for all"""
    lr: Annotated[float, Range(above=0, most=1000)] | None = None
    """peak learning rate of AdamW (default: 0.01 beside Muon, else 0.002)"""
    muon_lr: Annotated[float, Range(above=0, most=1000)] = 0.02
    """peak learning rate of Muon"""
    weight_decay: NonNegative = 0.1
    """decoupled weight decay, on matrices only"""
    final_weight_decay: NonNegative | None = None
    """weight decay at the end, to which it changes linearly (default: the same)"""
    beta1: Fraction = 0.9
    """AdamW's decay of the first moment"""
    beta2: Fraction = 0.99
    """AdamW's decay of the second moment"""
    momentum: Fraction = 0.95
    """Muon's (Nesterov) momentum"""
    muon_beta2: Fraction = 0.95
    """decay of the second moment by which Muon divides each row of an update (NorMuon); 0: plain Muon"""
    muon_polynomials: Literal["polar3", "polar4", "polar5", "jordan5"] = "polar4"
    """the steps by which Muon orthogonalises an update: so many of Polar Express, or Jordan's five"""
    warmup_steps: Natural = 50
    """steps of linear warm-up"""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """how the learning rate falls over the budget; constant: flat, then linear over the last `decay` of the budget"""
    decay: Share = 0.2
    """share of the budget over which the constant schedule decays"""
    final_lr: Share = 0.0
    """learning rate at the end as a fraction of the peak"""
    cycles: Annotated[int, Range(least=1, most=1000)] = 1
    """times that the schedule runs; each but the last ends with cycleN.ckpt"""
    ema: Fraction = 0.0
    """decay of an average of the weights, which is validated and saved in their place; 0: none"""
    clip: NonNegative = 1.0
    """largest norm of the gradient; 0 for no clipping"""


@dataclass
class DistillConfig:
    """Learning from the predictions of other models besides the text."""

    teachers: list[str] = field(default_factory=list)
    """runs or exports from whose averaged probabilities to learn"""
    weight: Share = 0.5
    """share of the divergence from the teachers in the loss"""


@dataclass
class TrainerConfig:
    """The budget of the training, its precision and devices."""

    max_steps: Count | None = None
    """stop after this many optimiser steps; on a CPU such a run is reproducible to the bit"""
    max_minutes: Positive | None = None
    """stop after this many minutes of training, without validation (default: 2); the schedule follows the clock"""
    patience: Natural = 0
    """stop when the windowed loss has had no new best for this many steps; 0: never"""
    precision: Literal["auto", 32, "bf16-mixed", "16-mixed"] = "auto"
    """auto: bf16-mixed where the device multiplies bfloat16 natively (GPU; CPU with AVX512_BF16 or AMX), else 32"""
    accumulate: Count = 1
    """cut each batch into this many parts and add up their gradients"""
    chunk: Natural = 0
    """characters of a long context to compute at a time, exactly; 0: all of it"""
    split: Literal["batch", "time"] = "batch"
    """what devices share: a batch, or (time) each sequence"""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """where to train"""
    devices: Count = 1
    """number of devices in each node"""
    strategy: str = "auto"
    """Lightning's strategy, such as ddp"""
    num_nodes: Count = 1
    """number of machines"""


@dataclass
class EvalConfig:
    """Validation."""

    every: Count = 250
    """steps between validations, each with a sample and a checkpoint"""
    sample_chars: Natural = 240
    """characters of the sample written at each validation; 0 for none"""
    prompt: FreeText = "\n"
    """text that the sample continues"""
    chars: Count = 1_000_000
    """characters to score, evenly spread over a longer split"""
    streaming: bool = True
    """also score the split as one sequence at each validation"""


@dataclass
class LogConfig:
    """Logging."""

    every: Count = 10
    """steps between rows of metrics.csv"""
    wandb: Literal["disabled", "offline", "online"] = "offline"
    """Weights & Biases: disabled, online, or offline"""
    project: str = "char-lm"
    """project of the run at Weights & Biases"""
    group: str | None = None
    """group of the run at Weights & Biases (default: the mixer)"""
    artifacts: bool = False
    """give the best checkpoint to Weights & Biases as an artifact"""
    tensorboard: bool = False
    """write files for TensorBoard into the run folder"""


@dataclass
class Config:
    """All options of a training run."""

    name: str | None = None
    """name of the run's folder (default: mixer and time)"""
    seed: Annotated[int, Range(least=0, most=2**63 - 1)] = 1
    """seed of the weights, the batches, the dropout and the samples"""
    runs: str = "runs"
    """folder of the run folders"""
    init: str | None = None
    """run, checkpoint or export whose weights to start from"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def mixer_name(self) -> str:
        """The names of the mixers: `mingru`, or `mingru+attention` for a hybrid."""
        mixer = self.model.mixer
        return mixer if isinstance(mixer, str) else "+".join(dict.fromkeys(mixer))

    def flat(self) -> dict[str, Any]:
        """All options by their full names: {"model.width": 128, ...}."""
        return {key: functools.reduce(getattr, key.split("."), self) for key in FIELDS}

    def update(self, values: dict[str, Any]) -> None:
        """Set options by their full names."""
        for key, value in values.items():
            *sections, name = key.split(".")
            setattr(functools.reduce(getattr, sections, self), name, value)

    def to_yaml(self) -> str:
        """The text of a file for `--config`."""
        return write_yaml({"version": VERSION} | asdict(self))


DEFAULT_LR = {"muon": 0.01, "adamw": 0.002}
"""Peak learning rate of AdamW for each `optim.name`."""
BEFORE: dict[str, Any] = {"model.residual_init": 1.0, "optim.muon_beta2": 0.0, "optim.muon_polynomials": "jordan5"}
"""What saved configurations mean that are older than an option, where that is not its default."""
FIELDS = fields(Config)
"""Every option by its full name: {"model.width": Field(...), ...}."""
