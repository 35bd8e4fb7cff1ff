"""The options of each benchmark. A `Quick` mark has the value that --quick takes: tiny sizes, to see that it works."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lm.config.fields import POSITIONAL, Count, Natural, Output, Positive, Range
from lm.config.options import MixerName, Weights

POWERS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
CellName = Literal["mingru", "minlstm"]
Width = Annotated[int, Range(least=2)]


@dataclass(frozen=True)
class Quick:
    """The value with --quick."""

    value: Any


Repeat = Annotated[Count, Quick(2)]


@dataclass
class Common:
    """The options of all benchmarks."""

    json: Output | None = None
    """write the numbers to this file"""
    insert: str | None = None
    """put the table between this document's marks `bench NAME [PARTS]`"""
    quick: bool = False
    """tiny sizes, to see that it works"""


@dataclass
class Timed:
    """The option of benchmarks that measure time."""

    repeat: Repeat = 7
    """timings of each, taken in turns"""


@dataclass
class OnDevice(Common):
    """The options of benchmarks that run on a CPU or a GPU, in float32 unless they have an option for it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu, cuda, or auto: a GPU if there is one"""


@dataclass
class Placed(OnDevice):
    """The options of benchmarks that run in several types of numbers."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """float32, bfloat16 or float16"""


@dataclass
class Overhead(Timed, Common):
    """Seconds per step of `char-lm train` over those of a bare loop with the same model, batches and optimiser."""

    steps: Annotated[Count, Quick(20)] = 60
    """steps in one run"""
    repeat: Repeat = 3


@dataclass
class Step(Timed, Common):
    """One step of `char-lm train`, whose options it takes as well, in parts; or its speed beside another commit's."""

    steps: Annotated[Count, Quick(20)] = 200
    """steps in one run"""
    gemm: Annotated[Count, Quick(128)] = 2048
    """the limit: multiply square matrices of this size"""
    against: str | None = None
    """a commit: compare the speed of its train.py with that of this tree, each in a process of its own"""
    ours: str = ""
    """options of char-lm train for this tree alone, in quotes: "--trainer.precision 32\""""
    theirs: str = ""
    """options of char-lm train for the other commit alone"""
    train: Annotated[list[str], POSITIONAL] = field(default_factory=list)
    """options of char-lm train, such as --config FILE or --model.width 64"""
    repeat: Repeat = 5

    @property
    def parts(self) -> list[str]:
        """Which table it is, for the mark in a document."""
        return ["against"] if self.against else []


@dataclass
class Cell(Timed, Placed):
    """One cell: our backends against other implementations, forward and backward."""

    sizes: Annotated[list[str], Quick(["2x64x16"])] = field(
        default_factory=lambda: ["64x256x768", "8x4096x384", "1x65536x384"]
    )
    """B x T x D"""
    cells: list[CellName] = field(default_factory=lambda: ["mingru", "minlstm"])
    """mingru and minlstm"""
    longest_loop: Count = 4096
    """largest T at which the Python loop runs"""


@dataclass
class Busy(Cell):
    """One cell alone, and while another process keeps a core busy; and whole trainings, beside two processes too."""

    sizes: Annotated[list[str], Quick(["2x64x16"])] = field(default_factory=lambda: ["64x256x768"])
    """B x T x D"""
    steps: Annotated[Natural, Quick(0)] = 20
    """steps of each training; 0 leaves them out"""
    repeat: Repeat = 3


@dataclass
class Train(Timed, Placed):
    """Whole models, forward + backward, per mixer, against minGRU-pytorch's minLM."""

    sizes: Annotated[list[str], Quick(["2x32"])] = field(default_factory=lambda: ["16x256", "4x1024", "1x4096"])
    """B x T"""
    mixers: Annotated[list[MixerName], Quick(["mingru"])] = field(default_factory=list)
    """which ones (default: all but the step-by-step references)"""
    width: Annotated[Width, Quick(32)] = 384
    """channels"""
    layers: Annotated[Count, Quick(1)] = 3
    """number of blocks; attention takes twice as many"""
    optimizer: Literal["muon", "adamw"] | None = None
    """muon or adamw: time its step as well"""
    gemm: Annotated[Count, Quick(128)] = 2048
    """the limit: multiply square matrices of this size"""
    repeat: Repeat = 5


@dataclass
class Length(Timed, Placed):
    """Time and peak memory of training one mixer, against sequence length."""

    lengths: Annotated[list[Count], Quick([16, 32])] = field(default_factory=lambda: list(POWERS))
    """sequence lengths"""
    mixers: Annotated[list[MixerName], Quick(["mingru"])] = field(default_factory=list)
    """which ones (default: all)"""
    batch: Annotated[Count, Quick(2)] = 8
    """sequences, the same at every length"""
    width: Annotated[Width, Quick(16)] = 128
    """channels"""
    expansion: Positive = 1.0
    """hidden channels as a multiple of the width"""
    convolution: Natural = 0
    """size of the causal convolution, 0 for none"""
    limit: Positive = 20.0
    """stop a mixer when one training step takes longer, in seconds"""
    plot: Output | None = None
    """draw a picture into this PNG file"""
    repeat: Repeat = 3


@dataclass
class Numerics(Placed):
    """Error of values and gradients against float64 at growing length, ours and the paper's log-space form."""

    lengths: Annotated[list[Count], Quick([64, 128])] = field(default_factory=lambda: list(POWERS))
    """sequence lengths"""
    cells: list[CellName] = field(default_factory=lambda: ["mingru", "minlstm"])
    """mingru and minlstm"""
    width: Annotated[Width, Quick(8)] = 64
    """channels"""
    plot: Output | None = None
    """draw a picture into this PNG file"""


@dataclass
class Sample(Timed, OnDevice):
    """Characters per second of decoding: against other samplers, many at once, and after a long time."""

    parts: list[Literal["peers", "batch", "length"]] = field(default_factory=list)
    """which tables: peers, batch, length (default: all)"""
    widths: Annotated[list[Width], Quick([16])] = field(default_factory=lambda: [128, 384])
    """channels of our models; batch and length take the first"""
    layers: Annotated[Count, Quick(1)] = 3
    """number of blocks"""
    batch: Annotated[Count, Quick(5)] = 64
    """samples at once"""
    generated: Annotated[list[Count], Quick([20, 40])] = field(default_factory=lambda: [1000, 100_000])
    """characters written before timing; try 1000000"""
    mixers: list[MixerName] = field(default_factory=lambda: ["mingru", "attention"])
    """whose time is taken after a long time"""
    window: Annotated[Count, Quick(16)] = 256
    """attention's"""
    chars: Annotated[Count, Quick(100)] = 1000
    """characters in one timing; a fiftieth of it where each takes milliseconds"""


@dataclass
class Parameters(Common):
    """Parameters per cell over those of the traditional GRU and LSTM cells, counted from the modules."""

    expansions: list[Count] = field(default_factory=lambda: [1, 2, 3, 4])
    """hidden channels as a multiple of the width"""
    width: Annotated[Width, Quick(32)] = 384
    """channels"""


@dataclass
class Start(Timed, Common):
    """Seconds from the start of a process to help, the first training step and the first character."""

    wandb: Literal["offline", "disabled"] = "offline"
    """log.wandb of the training"""
    repeat: Annotated[Count, Quick(1)] = 5


@dataclass
class Corpus(Timed, Common):
    """Memory, start-up and speed of `char-lm train` by the size of the text."""

    megabytes: Annotated[list[Count], Quick([1, 3])] = field(default_factory=lambda: [1, 1000, 4000])
    """sizes of the text in 10^6 bytes"""
    steps: Annotated[Count, Quick(20)] = 100
    """steps in one run"""
    repeat: Repeat = 15


@dataclass
class Context(Common):
    """Memory and speed of `char-lm train` by the length of the context, with trainer.chunk and without."""

    contexts: Annotated[list[Count], Quick([64, 256])] = field(default_factory=lambda: [4096, 65536, 1048576])
    """characters of the only sequence of a batch"""
    chunk: Annotated[Count, Quick(64)] = 4096
    """trainer.chunk"""
    whole: Count = 65536
    """the longest context that is also computed at once"""
    characters: Annotated[Count, Quick(1000)] = 200_000
    """about how many to train on, in three steps at least"""
    mixer: Literal["mingru", "minlstm", "mamba"] = "mingru"
    """what mixes over time"""


@dataclass
class Split(Common):
    """Memory and losses of `char-lm train --trainer.split time` by the number of processes."""

    processes: Annotated[list[Count], Quick([1, 2])] = field(default_factory=lambda: [1, 2, 4])
    """numbers of processes"""
    context: Annotated[Count, Quick(512)] = 131072
    """characters of the only sequence of a batch"""
    steps: Count = 3
    """steps in one run"""
    mixer: Literal["mingru", "minlstm", "mamba"] = "mingru"
    """what mixes over time"""


@dataclass
class Onnx(Timed, Common):
    """ONNX graphs in onnxruntime: the difference of their logits from the model's."""

    mixers: Annotated[list[MixerName], Quick(["mingru"])] = field(default_factory=list)
    """which ones (default: all)"""
    length: Annotated[Count, Quick(20)] = 1000
    """characters"""
    width: Annotated[Width, Quick(16)] = 128
    """channels"""
    layers: Annotated[Count, Quick(1)] = 3
    """number of blocks"""
    speed: bool = False
    """also time both"""


@dataclass
class Page(Timed, Common):
    """A model in a page, in Chromium: equal to Python's, characters per second, size, time until it is ready."""

    run: str = "pretrained"
    """a run's name or folder, a checkpoint file, or an exported folder"""
    weights: Annotated[list[Weights], Quick(["bfloat16"])] = field(default_factory=lambda: ["bfloat16", "int8"])
    """precisions of the matrices"""
    chars: Annotated[Count, Quick(100)] = 2000
    """characters to read and to write"""
    pages: list[str] = field(default_factory=list)
    """other pages with a model, such as those of char-lm inspect: their size and time until they are ready"""


BENCHMARKS: dict[str, type[Common]] = {
    kind.__name__.lower(): kind
    for kind in (
        Overhead,
        Cell,
        Busy,
        Train,
        Length,
        Numerics,
        Sample,
        Parameters,
        Step,
        Start,
        Corpus,
        Context,
        Split,
        Onnx,
        Page,
    )
}
"""Each benchmark is the module of its name in this package."""
