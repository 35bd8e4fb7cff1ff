"""The configuration of a run: defaults (or the run that is resumed) < YAML files < command line, checked."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from lm.config.command import Parser
from lm.config.fields import REPEATED, nearest
from lm.config.options import BEFORE, COPYING, DEFAULT_LR, FIELDS, VERSION, Config, TrainerConfig
from lm.config.strict_yaml import LARGEST, read_yaml
from lm.files import UserError, read_text, shorten

CHUNKABLE = ("mingru", "minlstm", "mamba")
"""Mixers for trainer.chunk: their states are small, and gradients pass through them."""
USAGE = "[--config FILE] [--resume RUN [--allow_changes]] [--section.key value ...]"


@dataclass
class Start:
    """Train a character-level language model; the defaults take two minutes on a laptop."""

    config: Annotated[list[str], REPEATED] = field(default_factory=list)
    """YAML file with options; see configs/"""
    resume: str | None = None
    """go on with this run (name or path); auto: with that of --name, if it is there"""
    allow_changes: bool = False
    """resume with changed options all the same; the run folder notes them"""


def read_words(words: list[str]) -> tuple[Start, dict[str, Any]]:
    """Split a command line into how to start, and options of the run by their full names.

    Raises:
        UserError: an option is unknown, or its value is wrong by itself.
    """
    given = Parser("char-lm train", USAGE, Start, Config).read(words)
    start = {key: given.pop(key) for key in vars(Start()) if key in given}
    return Start(**start), given


def resolve(given: dict[str, Any], files: Iterable[str] = (), saved: Config | None = None) -> Config:
    """The configuration from options, over files, over a saved configuration or the defaults.

    Args:
        given: options by their full names, each checked by itself (as `read_words` does).
        files: paths of YAML files, later ones over earlier ones.
        saved: takes the place of the defaults; it is not changed.

    Raises:
        UserError: a file cannot be read, or a value is wrong or does not fit the others.
    """
    config = Config()
    config.update(saved.flat() if saved else {})
    for file in files:
        text = read_text(Path(file), LARGEST)
        with _naming(file):
            config.update(_read_options(text))
    config.update(given)
    _set_budget(config.trainer, given)
    _complete(config)
    return config


def parse(words: list[str], saved: Config | None = None) -> Config:
    """The configuration from a command line; see `read_words` and `resolve`."""
    start, given = read_words(words)
    return resolve(given, start.config, saved)


def from_yaml(text: str, source: str | os.PathLike[str] = "config") -> Config:
    """The configuration that `Config.to_yaml` wrote, checked.

    Args:
        text: in YAML.
        source: the file that it is from, for error messages.

    Raises:
        UserError: it is not YAML, or has an unknown option, a wrong type or a wrong value, or is of a newer version.
    """
    config = Config()
    config.update(BEFORE)
    with _naming(source):
        config.update(_read_options(text))
        _complete(config)
    return config


@contextmanager
def _naming(source: str | os.PathLike[str]) -> Iterator[None]:
    """Begin error messages with the name of the file that has the error."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _read_options(text: str) -> dict[str, Any]:
    """The options in a YAML file by their full names, each checked by itself. Its version is checked and left out."""
    values = read_yaml(text)
    if not isinstance(values, dict):
        raise UserError(f"expected lines `key: value`, not {shorten(values)}")
    version = values.pop("version", VERSION)
    if type(version) is not int or version < 1:
        raise UserError(f"version: expected a whole number of at least 1, not {shorten(version)}")
    if version > VERSION:
        raise UserError(f"version {version} is newer than this program, which knows {VERSION}: update the program")
    options = dict(_flatten(values, ""))
    for key, value in options.items():
        FIELDS[key].check(value)
    return options


def _flatten(section: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The options in a section by their full names."""
    for name, value in section.items():
        key = f"{prefix}{name}"
        if key in FIELDS:
            yield key, value
        elif not any(known.startswith(f"{key}.") for known in FIELDS):
            raise UserError(f"unknown key {shorten(key)} in the file" + nearest(key, [*FIELDS, *vars(Config())]))
        elif isinstance(value, dict):
            yield from _flatten(value, f"{key}.")
        else:
            raise UserError(f"{key}: expected a section of options, not {shorten(value)}")


def _set_budget(trainer: TrainerConfig, given: dict[str, Any]) -> None:
    """Keep one budget: the one on the command line, else the one in the file, else two minutes."""
    if trainer.max_steps is not None and trainer.max_minutes is not None:
        steps_given, minutes_given = "trainer.max_steps" in given, "trainer.max_minutes" in given
        if steps_given == minutes_given:
            raise UserError("give trainer.max_steps or trainer.max_minutes, not both")
        setattr(trainer, "max_minutes" if steps_given else "max_steps", None)
    if trainer.max_steps is None and trainer.max_minutes is None:
        trainer.max_minutes = 2.0


def _complete(config: Config) -> None:
    """Refuse options that do not fit together, and fill in the defaults that depend on other options."""
    _check_model(config)
    _check_batches(config)
    if config.name is not None and not re.fullmatch(r"\w[\w.+=-]{0,99}", config.name):
        raise UserError(f"name {shorten(config.name)!r}: use letters, digits and . _ + = -, at most 100")
    if config.log.artifacts and config.log.wandb == "disabled":
        raise UserError("log.artifacts needs Weights & Biases: log.wandb must be offline or online")
    if config.optim.lr is None:
        config.optim.lr = DEFAULT_LR[config.optim.name]
    mixers = [config.model.mixer] if isinstance(config.model.mixer, str) else config.model.mixer
    if config.model.options.window is None and "attention" in mixers:
        config.model.options.window = config.data.context


def _check_model(config: Config) -> None:
    model = config.model
    if not isinstance(model.mixer, str) and len(model.mixer) != model.layers:
        raise UserError(f"model.mixer names {len(model.mixer)} layers and model.layers says {model.layers}")
    if model.width % 2:
        raise UserError(f"model.width must be even, not {model.width}")
    for key in ("model.options.expansion", "model.mlp_expansion"):
        value = config.flat()[key]
        if value is not None and value * model.width < 3:
            raise UserError(f"{key} {value:g} leaves fewer than 3 channels of width {model.width}; take a larger one")


def _check_batches(config: Config) -> None:
    data, trainer = config.data, config.trainer
    devices = trainer.devices * trainer.num_nodes
    by_time = trainer.split == "time"
    parts = trainer.accumulate * (1 if by_time else devices)
    if data.batch_size % parts:
        raise UserError(
            f"data.batch_size {data.batch_size} cannot be cut into {parts} equal parts "
            "(trainer.accumulate x trainer.devices x trainer.num_nodes)"
        )
    if data.vocabulary == "bytes" and data.corpus == COPYING:
        raise UserError("data.vocabulary bytes needs a text; selective_copying has a vocabulary of its own")
    if data.sampling == "streams" and data.corpus == COPYING:
        raise UserError("data.sampling streams needs a text; selective_copying has problems, each from a zero state")
    if data.sampling == "streams" and devices > 1:
        raise UserError("data.sampling streams carries its state on one device: trainer.devices must be 1")
    mixers = [config.model.mixer] if isinstance(config.model.mixer, str) else config.model.mixer
    other = [name for name in mixers if name not in CHUNKABLE]
    if trainer.chunk and other:
        raise UserError(f"trainer.chunk: {other[0]} cannot pass its gradient on in chunks; {', '.join(CHUNKABLE)} can")
    if trainer.chunk and (config.distill.teachers or by_time):
        raise UserError("trainer.chunk goes together neither with distill.teachers nor with trainer.split time")
    if by_time and (other or data.corpus == COPYING):
        raise UserError(
            f"trainer.split time: {(other or [COPYING])[0]} cannot be cut; text with {', '.join(CHUNKABLE)} can"
        )
    convolution = config.model.options.convolution
    if by_time and (data.context % devices or data.context // devices < (4 if convolution is None else convolution)):
        raise UserError(
            f"trainer.split time: data.context {data.context} cannot be cut into {devices} equal stretches that are "
            "longer than the convolution"
        )
    if data.batch_size * data.context > 2**28:
        raise UserError(
            f"data.batch_size {data.batch_size} x data.context {data.context}: more than 2^28 characters in a step"
        )
