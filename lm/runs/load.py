"""Trained models from run folders, checkpoint files and exports."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.config.options import Config
from lm.config.resolve import from_yaml
from lm.config.strict_yaml import LARGEST
from lm.corpora.tokenizer import CharTokenizer, make_tokenizer
from lm.files import DATA, UserError, read_text
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from lm.runs.hub import PREFIX, download

if TYPE_CHECKING:
    from torch import Tensor

    from lm.model import LanguageModel

PRETRAINED = DATA / "pretrained"
"""The small model that comes with this program, as `char-lm export` wrote it."""
FORMAT, VERSION = "char-lm", 1
"""Entries of the metadata of an export's model.safetensors."""


def load(path: str | os.PathLike[str]) -> "tuple[LanguageModel, CharTokenizer]":
    """A trained model in eval mode on the CPU, and its tokenizer.

    Args:
        path: a run folder (its best checkpoint), a name under `runs`, a checkpoint file, a folder that `char-lm export`
            wrote, "hub:USER/NAME" for one on the Hugging Face Hub (`lm.runs.hub`), or "pretrained" for the small model
            that comes with this program.

    Raises:
        UserError: there is nothing to load there, or it does not fit together.
    """
    model, tokenizer, _ = load_with_config(path)
    return model, tokenizer


def load_with_config(path: str | os.PathLike[str]) -> "tuple[LanguageModel, CharTokenizer, Config]":
    """As `load`, with the configuration of the run."""
    saved = read_trained(locate(os.fspath(path)))
    return make_model(saved), saved.tokenizer, saved.config


def locate(name: str, runs: str = "runs") -> Path:
    """The checkpoint file or export folder of a name, a path or `hub:USER/NAME`; an empty name means the newest run
    that has a checkpoint.

    Raises:
        UserError: there is none.
    """
    if name.startswith(PREFIX):
        return download(name)
    path = Path(name)
    if name and os.path.isfile(path):
        return path.parent if path.name == "model.safetensors" else path
    if name and os.path.isfile(path / "model.safetensors"):
        return path
    if name == PRETRAINED.name and not any(
        os.path.isfile(folder / "config.yaml") for folder in (path, Path(runs) / name)
    ):
        return PRETRAINED
    run = Run.find(name, runs, "checkpoints/*.ckpt")
    for checkpoint in ("best.ckpt", "last.ckpt", "previous.ckpt"):
        if (run.checkpoints / checkpoint).exists():
            return run.checkpoints / checkpoint
    raise UserError(f"{run.path}: no checkpoint there yet")


@dataclass
class Trained:
    """The content of a checkpoint or an export."""

    path: Path
    weights: "dict[str, Tensor]"
    config: Config
    tokenizer: CharTokenizer
    about: dict[str, Any]
    """its provenance: of a checkpoint only {"step": ...}"""


def read_trained(path: Path) -> Trained:
    """Read a checkpoint file or an export folder.

    Raises:
        UserError: it is missing, damaged, or not one of these.
    """
    if path.is_dir():
        return _read_export(path)
    checkpoint = read_checkpoint(path)
    weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    step = checkpoint.get("global_step")
    about = {"step": step if isinstance(step, int) else None}
    config, tokenizer = from_yaml(checkpoint["config"], path), make_tokenizer(checkpoint["characters"])
    return Trained(path, weights, config, tokenizer, about)


def _read_export(folder: Path) -> Trained:
    """Read a folder that `lm.runs.export` wrote. Raises UserError, also if it was written by a newer version."""
    from safetensors import SafetensorError, safe_open

    path, options = folder / "model.safetensors", folder / "config.yaml"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path}: not exported by this program (char-lm export)")
            if int(metadata["version"]) > VERSION:
                raise UserError(f"{path}: exported by a newer version of this program (format {metadata['version']})")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["about"])
        if not isinstance(about, dict):
            raise ValueError("its provenance is no record")
        if about.get("sha256") not in (None, digest_of(weights)):  # older exports have no checksum
            raise ValueError("its weights do not have the checksum that was written with them")
    except FileNotFoundError:
        raise UserError(f"{folder}: no model.safetensors there; is the folder whole?") from None
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not an exported model: {error}") from None
    config = from_yaml(read_text(options, LARGEST), options)
    return Trained(path, weights, config, CharTokenizer.load(folder / "tokenizer.json"), about)


def digest_of(weights: "dict[str, Tensor]") -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and values of weights on the CPU."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        digest.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_model(saved: Trained) -> "LanguageModel":
    """The model of a checkpoint or an export, in eval mode.

    Raises:
        UserError: its weights, configuration and tokenizer do not fit together.
    """
    from lm.model import LanguageModel

    problem = _size_problem(saved)  # before memory is allocated for what a stranger's configuration asks for
    if not problem:
        model = LanguageModel(len(saved.tokenizer), saved.config.model)
        problem = _weight_problem(saved, model.state_dict())
    if problem:
        raise UserError(f"{saved.path}: its weights do not fit its configuration: {problem}")
    model.load_state_dict(saved.weights)
    return model.eval()


def start_from(model: "LanguageModel", name: str, tokenizer: CharTokenizer) -> None:
    """Give a model the weights of another one.

    Raises:
        UserError: there is no such run, checkpoint or export, or it has another shape or vocabulary.
    """
    saved = read_trained(locate(name))
    problem = "its vocabulary has other characters"
    if saved.tokenizer.characters == tokenizer.characters:
        problem = _weight_problem(saved, model.state_dict())
    elif saved.tokenizer.unit != tokenizer.unit:
        problem = f"it reads {saved.tokenizer.unit}s"
    if problem:
        raise UserError(f"init: the weights of {saved.path} do not fit this run: {problem}")
    model.load_state_dict(saved.weights)


def _size_problem(saved: Trained) -> str:
    """How the size of the weights differs from the configuration and the tokenizer; empty if it does not."""
    model, ids = saved.config.model, len(saved.tokenizer)
    layers = len({name.split(".")[1] for name in saved.weights if name.startswith("blocks.")})
    embedding = saved.weights.get("embedding.weight")
    if embedding is None or embedding.ndim != 2:
        return "embedding.weight is missing"
    if embedding.shape[0] != ids:
        return f"they are for {embedding.shape[0]} ids and the tokenizer has {ids}"
    if (embedding.shape[1], layers) != (model.width, model.layers):
        return f"they are of {layers} layers of width {embedding.shape[1]}, not {model.layers} of {model.width}"
    return ""


def _weight_problem(saved: Trained, expected: "dict[str, Tensor]") -> str:
    """The first weight that is missing, unknown, or of another shape; empty if all fit."""
    for name in sorted(expected.keys() ^ saved.weights.keys()):
        return f"{name} is {'missing' if name in expected else 'not a weight of this model'}"
    for name, weight in saved.weights.items():
        if weight.shape != expected[name].shape or not weight.is_floating_point() or weight.is_sparse:
            found, right = (f"{t.dtype} {list(t.shape)}".removeprefix("torch.") for t in (weight, expected[name]))
            return f"{name} is {found}, not {right}"
    return ""
