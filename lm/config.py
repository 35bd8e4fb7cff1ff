"""The configuration: typed dataclasses, one docstring per field, which becomes that option's line in `--help`.

Order of precedence: the defaults here < a YAML file < the command line. Imports nothing of ours and no torch, so that
`--help` and a wrong option answer at once.
"""

import difflib
import functools
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from lm.files import CONTROL, SURROGATE, UserError, read_text

VERSION = 1
"""Of the run folder and its files; goes up when an older program could no longer read them rightly."""
LARGEST = 2**20
"""Characters of a configuration."""
MixerName = Literal["mingru", "minlstm", "attention", "mamba", "s4d", "gru", "lstm", "gru_reference", "lstm_reference"]


COPYING = "selective_copying"
"""The data.corpus that is no text: `lm.copying`."""


@dataclass
class CopyingOptions:
    """The problems of data.corpus selective_copying; each fills data.context."""

    tokens: int = 16
    """selective_copying: characters to remember, and to repeat at the end"""
    vocabulary: int = 16
    """selective_copying: characters in all, the noise and the mark of an answer included"""


@dataclass
class DataConfig:
    """What is trained on."""

    corpus: str = "tiny_shakespeare"
    """tiny_shakespeare, shakespeare, a text file, folder or glob, or the id of a data set on the Hub; or the synthetic
    task selective_copying"""
    context: int = 128
    """characters that a training sequence has, and a window of the windowed validation loss"""
    batch_size: int = 12
    """sequences in one optimiser step, over all devices"""
    sampling: Literal["windows", "streams"] = "windows"
    """random windows from a zero state, or contiguous streams whose state is carried from batch to batch"""
    column: str = "text"
    """column that holds the text (Hub, parquet, json and csv corpora)"""
    split: str | None = None
    """split to take (Hub corpora; default: all, in their order)"""
    revision: str | None = None
    """revision of the data set (Hub corpora)"""
    copying: CopyingOptions = field(default_factory=CopyingOptions)
    """the task selective_copying"""


@dataclass
class MixerOptions:
    """Options of the mixers; None leaves a mixer's own default."""

    expansion: float | None = None
    """all but attention and s4d: hidden channels as a multiple of the width (default 2)"""
    convolution: int | None = None
    """mingru, minlstm, mamba: size of the causal convolution before the cell, 0 for none (default 4)"""
    gate_bias: float | None = None
    """mingru, minlstm, gru, lstm: initial bias of the gates towards keeping the past (default 0; lstm: 1)"""
    d_state: int | None = None
    """mamba, s4d: numbers of state that each channel has (default 16; s4d: 64)"""
    heads: int | None = None
    """attention: number of heads (default: width / 32)"""
    window: int | None = None
    """attention: how far back it sees, which is also the length of its cache (default: data.context)"""


@dataclass
class ModelConfig:
    """The network."""

    mixer: MixerName | list[MixerName] = "mingru"
    """what mixes over time: mingru, minlstm, attention, mamba, s4d, gru, lstm, and for timing gru_reference and
    lstm_reference; or a list, one per layer"""
    options: MixerOptions = field(default_factory=MixerOptions)
    """options of the mixers; each goes to the mixers that have it"""
    width: int = 128
    """channels of the residual stream"""
    layers: int = 3
    """number of blocks"""
    mlp: Literal["relu2", "gelu", "swiglu", "none"] = "relu2"
    """activation of the MLP, or none for blocks without one"""
    mlp_expansion: float = 4.0
    """hidden channels of the MLP as a multiple of the width (swiglu takes two thirds of it: equal parameters)"""
    dropout: float = 0.0
    """dropout on the embedding and on what each mixer and MLP adds"""
    compile: bool = False
    """torch.compile the whole model; needs a C++ compiler, and about a minute at the start"""


@dataclass
class OptimConfig:
    """The optimiser and the learning-rate schedule."""

    name: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the blocks' matrices and AdamW for the rest; adamw: AdamW for all"""
    lr: float | None = None
    """peak learning rate of AdamW (default: 0.01 for what it has beside Muon, 0.002 for all)"""
    muon_lr: float = 0.02
    """peak learning rate of Muon"""
    weight_decay: float = 0.1
    """decoupled weight decay, on matrices only"""
    beta1: float = 0.9
    """AdamW's decay of the first moment"""
    beta2: float = 0.99
    """AdamW's decay of the second moment"""
    momentum: float = 0.95
    """Muon's (Nesterov) momentum"""
    warmup_steps: int = 50
    """steps of linear warm-up"""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """how the rate falls over the budget; constant: flat, then linear over the last `decay` of it"""
    decay: float = 0.2
    """share of the budget over which the constant schedule decays at the end"""
    final_lr: float = 0.0
    """learning rate at the end as a fraction of the peak"""
    clip: float = 1.0
    """largest norm of the gradient; 0 for no clipping"""


@dataclass
class TrainerConfig:
    """How long, and on what, to train."""

    max_steps: int | None = None
    """stop after so many optimiser steps: such a run is reproducible to the bit on a CPU"""
    max_minutes: float | None = None
    """stop after so many minutes of training, validation excluded (default: 2); the schedule follows the clock"""
    precision: Literal["auto", 32, "bf16-mixed", "16-mixed"] = "auto"
    """auto: bf16-mixed on a GPU that has it, else 32"""
    accumulate: int = 1
    """cut each batch into so many parts and add up their gradients"""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """where to train"""
    devices: int = 1
    """number of devices in each node"""
    strategy: str = "auto"
    """Lightning's strategy, such as ddp"""
    num_nodes: int = 1
    """number of machines"""


@dataclass
class EvalConfig:
    """What happens at a validation."""

    every: int = 250
    """steps between validations; each also writes a sample and a checkpoint"""
    sample_chars: int = 240
    """length of the sample written at each validation; 0 for none"""
    prompt: str = "\n"
    """what the sample continues"""


@dataclass
class LogConfig:
    """Where metrics go."""

    every: int = 10
    """steps between rows of metrics.csv"""
    wandb: Literal["disabled", "offline", "online"] = "offline"
    """Weights & Biases; offline writes into the run folder only, for `wandb sync` or `wandb leet` later"""
    project: str = "char-lm"
    """project that the run belongs to at Weights & Biases"""
    group: str | None = None
    """group that the run belongs to at Weights & Biases (default: the mixer)"""


@dataclass
class Config:
    """All options of train.py."""

    name: str | None = None
    """name of the run's folder (default: mixer and time)"""
    seed: int = 1
    """seed of the weights, the batches, the dropout and the samples"""
    runs: str = "runs"
    """folder of the run folders"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def mixer_name(self) -> str:
        """The mixers in short: `mingru`, or `mingru+attention` for a hybrid."""
        mixer = self.model.mixer
        return mixer if isinstance(mixer, str) else "+".join(dict.fromkeys(mixer))

    def flat(self) -> dict[str, Any]:
        """All options by their full names: {"model.width": 128, ...}."""
        return dict(_flatten(self, ""))

    def update(self, values: dict[str, Any]) -> None:
        """Set options by their full names."""
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            setattr(functools.reduce(getattr, section.split("."), self) if section else self, name, value)

    def to_yaml(self) -> str:
        """The file that `--config` reads."""
        return yaml.dump({"version": VERSION} | asdict(self), Dumper=_Writer, sort_keys=False, allow_unicode=True)


def _flatten(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in vars(section).items():
        if is_dataclass(value):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class Parser(ArgumentParser):
    """A parser whose help is short, and whose errors are one line with the nearest right name, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sys.stderr.write(f"{self.prog}: error: {UserError(explain(str(ex or message), self.option_names()))}\n")
        sys.exit(2)

    def option_names(self) -> list[str]:
        """All options, as they are typed."""
        names = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        return [name for name in names if name[2:] not in SECTIONS]

    def format_help(self, formatter: Any = None) -> str:
        """One entry an option: name, meaning, default."""
        lines = [f"usage: {self.prog} {self.usage}", "", *textwrap.wrap(self.description or "", 100), ""]
        for action in self._actions:
            name = (action.option_strings or [str(action.metavar or action.dest).upper()])[-1].removesuffix("+")
            if action.help and "configuration file." not in str(action.help) and not name.startswith("--print_"):
                lines += _help_entry(name, str(action.help), action.default)
        return "\n".join(lines) + "\n"


def _help_entry(name: str, text: str, default: Any) -> list[str]:
    text = text.replace("%%", "%")
    if "(default" not in text and default not in (None, "==SUPPRESS=="):
        text += f" (default: {default!r})" if default in ("", "\n") else f" (default: {default})"
    wrapped = textwrap.wrap(text, 110 - 32)
    return [f"  {name:<29} {wrapped[0]}", *(" " * 32 + line for line in wrapped[1:])]


def explain(message: str, options: list[str]) -> str:
    """A parser's message as one line that names the culprit and the remedy."""
    message = message.strip()
    if unknown := re.search(r"unrecognized arguments?: (.*)", message):
        word = unknown.group(1).split()[0].split("=")[0]
        return f"unknown option {word}" + _nearest(word, options)
    if problem := re.search(r'Parser key "([\w.]+)"(?: element \d+)?:\s*(.*)', message, re.DOTALL):
        return _explain_value(problem.group(1), problem.group(2))
    return " ".join(message.split())


def _explain_value(key: str, problem: str) -> str:
    given = re.search(r"(?:Got|Given) value: (.*)", problem, re.DOTALL)
    if not given:
        return f"{key}: {' '.join(problem.split())}"
    value = " ".join(given.group(1).split())
    choices = re.findall(r"'?([\w-]+)'?", "".join(re.findall(r"Literal\[([^\]]*)\]", problem.split("Errors:")[0])))
    choices = list(dict.fromkeys(choices))
    if choices:
        return f"{key}: expected {' or '.join(choices)}, not {value}" + _nearest(value, choices)
    names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    kinds = [names[kind] for kind in re.findall(r"class '(\w+)'", problem.split("Errors:")[0]) if kind in names]
    return f"{key}: expected {' or '.join(dict.fromkeys(kinds)) or 'something else'}, not {value}"


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


DEFAULT_LR = {"muon": 0.01, "adamw": 0.002}
BUDGETS = ("max_steps", "max_minutes")
AT_LEAST_ONE = (
    "data.context data.batch_size model.width model.layers trainer.max_steps trainer.accumulate trainer.devices "
    "trainer.num_nodes eval.every log.every data.copying.tokens model.options.heads model.options.window "
    "model.options.d_state"
).split()
AT_LEAST_ZERO = (
    "seed optim.weight_decay optim.warmup_steps optim.clip eval.sample_chars model.options.convolution".split()
)
ABOVE_ZERO = "optim.lr optim.muon_lr trainer.max_minutes model.mlp_expansion model.options.expansion".split()
FRACTIONS = "model.dropout optim.beta1 optim.beta2 optim.momentum".split()  # 1 itself would lose everything
SHARES = "optim.decay optim.final_lr".split()
AT_MOST = {
    "seed": 2**63 - 1,
    "model.width": 2**16,
    "model.layers": 1000,
    "model.mlp_expansion": 100,
    "model.options.expansion": 100,
    "model.options.d_state": 2**16,
    "model.options.convolution": 1000,
    "optim.lr": 1000,
    "optim.muon_lr": 1000,
    "data.batch_size": 2**20,
}
"""Beyond these, and 2^31 for all others, a number is a slip of the finger, and would fill the memory."""
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def make_parser() -> Parser:
    """The parser of train.py."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(
        prog="train.py",
        usage="[--config FILE] [--resume RUN [--allow_changes]] [--section.key value ...]",
        description="Train a character-level language model; the defaults take two minutes on a laptop.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=str, action="append", help="YAML file with options; see configs/")
    parser.add_argument("--resume", type=str, help="go on with this run (a name or a path), with its options")
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="resume with changed options all the same; the run folder notes them",
    )
    parser.add_class_arguments(Config)
    return parser


def parse(argv: list[str], saved: str | None = None) -> tuple[Config, str | None]:
    """The configuration that a command line asks for, checked, and the run to resume, if any.

    Args:
        argv: the words after the program's name.
        saved: a configuration in YAML that takes the place of the defaults.

    Exits with code 2 and one line on stderr where something is wrong.
    """
    parser = make_parser()
    for word in argv:  # jsonargparse would read `--model FILE` as a configuration, past our checks
        if word.split("=")[0] in (f"--{section}" for section in SECTIONS):
            parser.error(f"unrecognized arguments: {word}")
    given = parser.parse_args(argv, defaults=False)
    files, resume = given.pop("config", None) or [], given.pop("resume", None)
    try:
        config = Config()
        for source, text in [("saved", saved)] * bool(saved) + [(file, _read_config(file)) for file in files]:
            config.update(read_options(text, source))
        config.update({key: value for key, value in given.items() if key in KINDS})
        check_types(config)
        _set_budget(config.trainer, given.get("trainer", {}))
        check(config)
    except UserError as error:
        parser.error(str(error))
    return config, resume


def _read_config(file: str) -> str:
    return read_text(Path(file), LARGEST)


def from_yaml(text: str, source: str | os.PathLike[str] = "config") -> Config:
    """The configuration that `Config.to_yaml` wrote, checked.

    Args:
        text: in YAML.
        source: the file that it is from, for error messages.

    Raises:
        UserError: it is not YAML, or has an unknown option, a wrong type or a wrong value, or is of a newer version.
    """
    config = Config()
    try:
        config.update(read_options(text, ""))
        check_types(config)
        check(config)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return config


def read_options(text: str, source: str) -> dict[str, Any]:
    """What a YAML file sets, flat: {"model.width": 128, ...}; its version is looked at and left out.

    Raises:
        UserError: it is not a file of options that this program knows.
    """
    prefix = f"{source}: " if source else ""
    try:
        values = read_yaml(text)
        if not isinstance(values, dict):
            raise UserError(f"expected lines `key: value`, not {shorten(values)}")
        version = values.pop("version", VERSION)
        if type(version) is not int or version < 1:
            raise UserError(f"version: expected a whole number of at least 1, not {shorten(version)}")
        if version > VERSION:
            raise UserError(f"version {version} is newer than this program, which knows {VERSION}: update the program")
        return dict(_options(values, ""))
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def _options(section: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        key = f"{prefix}{name}"
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise UserError(f"{key}: expected a section of options, not {shorten(value)}")
            yield from _options(value, f"{key}.")
        elif key in KINDS and isinstance(name, str):
            yield key, value
        else:
            raise UserError(f"unknown key {shorten(key)} in the file" + _nearest(key[:100], [*SECTIONS, *KINDS]))


def read_yaml(text: str) -> Any:
    """YAML as plain data, of a few kilobytes.

    Raises:
        UserError: it is not YAML, or has what no configuration needs and a malicious one thrives on: anchors (a few
            lines of them stand for gigabytes), tags, very deep nesting; or a key twice in a section.
    """
    if len(text) > LARGEST:
        raise UserError(f"{len(text):,} characters; such a file has at most {LARGEST:,}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Yaml):
            line = f"line {event.start_mark.line + 1}"  # type: ignore[union-attr]
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if getattr(event, "anchor", None):
                raise UserError(f"{line}: anchors (&) and aliases (*) are not allowed; write the value out")
            if tag := getattr(event, "tag", None):
                raise UserError(f"{line}: tags ({shorten(tag)}) are not allowed; write a plain value")
            if depth > 8:
                raise UserError(f"{line}: nested too deeply")
        return yaml.load(text, _Yaml)
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{at}not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"not YAML: {error}") from None


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe subset: numbers as Python writes them (1e-3), no dates, every key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a word")
            if key.value in seen:
                raise UserError(f"{line}: {shorten(key.value)} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.rsplit(":", 1)[1] not in ("timestamp", "float", "merge", "value")]
    for first, forms in _Yaml.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.[\d_]*(e[-+]?\d+)?|\d[\d_]*e[-+]?\d+|\.\d[\d_]*(e[-+]?\d+)?|\.inf)$|\.nan$", re.I),
    list("-+0123456789."),
)


class _Writer(yaml.SafeDumper):
    """Quotes the texts that `_Yaml` would take for something else."""


_Writer.yaml_implicit_resolvers = _Yaml.yaml_implicit_resolvers


def shorten(value: Any) -> str:
    """A value as a few words, whatever it holds."""
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _kinds(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from _kinds(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, kind


KINDS: dict[str, Any] = dict(_kinds(Config, ""))
"""The type of every option by its full name."""
SECTIONS = {key[: dot.start()] for key in KINDS for dot in re.finditer(r"\.", key)}


def check_types(config: Config) -> None:
    """Refuse values of another type than their options have.

    Raises:
        UserError: names the option, what it must be, and what it is.
    """
    for key, value in config.flat().items():
        if not _fits(value, KINDS[key]):
            choices = [str(c) for c in _choices(KINDS[key])]
            expected = " or ".join(choices or dict.fromkeys(_words(KINDS[key])))
            near = _nearest(value, choices) if isinstance(value, str) else ""
            raise UserError(f"{key}: expected {expected}, not {shorten(value)}{near}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_args(kind):
        return any(_fits(value, choice) for choice in get_args(kind))
    return type(value) in ((int, float) if kind is float else (kind,))


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return list(dict.fromkeys(choice for part in get_args(kind) for choice in _choices(part)))


def _words(kind: Any) -> list[str]:
    return [word for part in get_args(kind) for word in _words(part)] if get_args(kind) else [WORDS[kind]]


def _set_budget(trainer: TrainerConfig, given: Any) -> None:
    """Keep one budget: the one on the command line, else the one in the file, else two minutes."""
    if trainer.max_steps is not None and trainer.max_minutes is not None:
        if ("max_steps" in given) == ("max_minutes" in given):
            raise UserError("give trainer.max_steps or trainer.max_minutes, not both")
        setattr(trainer, "max_minutes" if "max_steps" in given else "max_steps", None)
    if trainer.max_steps is None and trainer.max_minutes is None:
        trainer.max_minutes = 2.0


def check(config: Config) -> None:
    """Refuse values out of range, and options that do not fit together.

    Raises:
        UserError: names the option, what it must be, and what it is.
    """
    values = {key: value for key, value in config.flat().items() if value is not None}
    rules: tuple[tuple[Iterable[str], Callable[[Any], bool], str], ...] = (
        (values, lambda v: not isinstance(v, float) or math.isfinite(v), "a finite number"),
        (AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (AT_LEAST_ZERO, lambda v: v >= 0, "at least 0"),
        (ABOVE_ZERO, lambda v: v > 0, "above 0"),
        (FRACTIONS, lambda v: 0 <= v < 1, "at least 0 and below 1"),
        (SHARES, lambda v: 0 <= v <= 1, "between 0 and 1"),
    )
    for keys, holds, text in rules:
        for key in keys:
            if key in values and not holds(values[key]):
                raise UserError(f"{key} must be {text}, not {shorten(values[key])}")
    for key, value in values.items():
        most = AT_MOST.get(key, 2**31 - 1)
        if isinstance(value, int | float) and abs(value) > most:
            raise UserError(f"{key} must be at most {most:,}, not {shorten(value)}")
        if isinstance(value, str) and (CONTROL if key != "eval.prompt" else SURROGATE).search(value):
            raise UserError(f"{key} has a character that no such text can have: {value[:80]!a}")
        if isinstance(value, str) and key != "eval.prompt" and any(len(p.encode()) > 255 for p in value.split("/")):
            raise UserError(f"{key}: {shorten(value)} is too long; no file or folder can have such a name")
    _check_together(config)


def _check_together(config: Config) -> None:
    model, data, trainer = config.model, config.data, config.trainer
    if not isinstance(model.mixer, str) and len(model.mixer) != model.layers:
        raise UserError(f"model.mixer names {len(model.mixer)} layers and model.layers says {model.layers}")
    if model.width % 2:
        raise UserError(f"model.width must be even, not {model.width}")
    parts = trainer.accumulate * trainer.devices * trainer.num_nodes
    if data.batch_size % parts:
        raise UserError(
            f"data.batch_size {data.batch_size} cannot be cut into {parts} equal parts "
            "(trainer.accumulate x trainer.devices x trainer.num_nodes)"
        )
    if data.sampling == "streams" and data.corpus == COPYING:
        raise UserError("data.sampling streams needs a text; selective_copying has problems, each from a zero state")
    if data.sampling == "streams" and trainer.devices * trainer.num_nodes > 1:
        raise UserError("data.sampling streams carries its state on one device: trainer.devices must be 1")
    if config.name is not None and not re.fullmatch(r"\w[\w.+=-]{0,99}", config.name):
        raise UserError(f"name {shorten(config.name)!r}: use letters, digits and . _ + = -, at most 100")
    for key in ("model.options.expansion", "model.mlp_expansion"):
        value = config.flat()[key]
        if value is not None and value * model.width < 3:
            raise UserError(f"{key} {value:g} leaves fewer than 3 channels of width {model.width}; take a larger one")
    if data.batch_size * data.context > 2**28:
        raise UserError(
            f"data.batch_size {data.batch_size} x data.context {data.context}: more than 2^28 characters in a step"
        )
    if config.optim.lr is None:
        config.optim.lr = DEFAULT_LR[config.optim.name]
    if model.options.window is None and "attention" in ([model.mixer] if isinstance(model.mixer, str) else model.mixer):
        model.options.window = data.context


SAMPLING: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "temperature": (float, lambda v: 0 <= v < math.inf, "at least 0"),
    "top_k": (int, lambda v: v >= 0, "at least 0"),
    "top_p": (float, lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "min_p": (float, lambda v: 0 <= v <= 1, "between 0 and 1"),
    "chars": (int, lambda v: v >= 0, "at least 0"),
    "seed": (int, lambda v: 0 <= v < 2**64, "at least 0 and below 2^64"),
}
"""Options of generate.py that can also be set in a session: type, which values are right, and that in words."""
