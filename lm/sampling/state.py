"""State files: the positions of one or more texts, as safetensors, to continue them later.

A file has the hash of the model that wrote it, as the state of one model means nothing to another.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from lm.config.options import ModelConfig
from lm.files import UserError, atomic_write
from lm.model import LanguageModel
from lm.sampling.decoder import Position

FORMAT, VERSION = "char-lm state", 1


TRAINING_ONLY = ("dropout", "compile", "residual_init")
"""Options of a model that do not change what trained weights compute."""
ADDED = ("positions",)
"""Options of mixers that states of 0.1.0 do not know: they count only where they are given."""


def fingerprint(model: LanguageModel, characters: str, config: ModelConfig) -> str:
    """SHA-256, in hexadecimal, of all that a state depends on: weights, architecture and vocabulary."""
    described = {name: value for name, value in asdict(config).items() if name not in TRAINING_ONLY}
    for name in ADDED:
        if described["options"][name] is None:
            del described["options"][name]
    return _digest(hashlib.sha256(json.dumps([described, characters], sort_keys=True).encode()), model.state_dict())


def _digest(digest: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """The hash, in hexadecimal, of what `digest` has read before and of tensors and their names."""
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return str(digest.hexdigest())


def save(path: Path, positions: Sequence[Position], seed: int, model_hash: str) -> None:
    """Write the positions and the seed of their streams of random numbers, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {
        f"{layer}.{part}": torch.cat([p.state[layer][part] for p in positions]).cpu().contiguous()
        for layer, parts in enumerate(positions[0].state)
        for part in range(len(parts))
    }
    tensors["logits"] = torch.stack([torch.from_numpy(p.logits) for p in positions])
    tensors["drawn"] = torch.tensor([p.drawn for p in positions], device="cpu")
    metadata = {"format": FORMAT, "version": str(VERSION), "model": model_hash, "seed": str(seed)}
    metadata["sha256"] = _digest(hashlib.sha256(str(seed).encode()), tensors)
    atomic_write(path, to_bytes(tensors, metadata))


def load(path: Path, model: LanguageModel, model_hash: str) -> tuple[list[Position], int]:
    """Read the positions of a state file, and the seed of their streams of random numbers.

    Raises:
        UserError: the file is missing, damaged, no state file, or the state of another model.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a plain file, so not a state file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path}: not a state file of this program")
            if int(metadata["version"]) > VERSION:
                raise UserError(f"{path}: written by a newer version of this program (format {metadata['version']})")
            if metadata.get("model") != model_hash:
                raise UserError(f"{path}: the state of another model; load it with the model that saved it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        seed = int(metadata["seed"])
        if metadata["sha256"] != _digest(hashlib.sha256(str(seed).encode()), tensors):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        raise UserError(f"no state file {path}") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged, or not a state file: {error}") from None
    if not _fits(tensors, model) or not 0 <= seed < 2**64:
        raise UserError(f"{path}: damaged: its tensors are not those of a state of this model")
    rows = {name: tensor.to(model.head.weight.device).split(1) for name, tensor in tensors.items()}
    sizes = [len(layer) for layer in model.init_state(1)]
    states = [
        tuple(tuple(rows[f"{layer}.{part}"][n] for part in range(size)) for layer, size in enumerate(sizes))
        for n in range(len(tensors["drawn"]))
    ]
    return list(map(Position, states, tensors["logits"].numpy(), tensors["drawn"].tolist())), seed


def _fits(tensors: dict[str, torch.Tensor], model: LanguageModel) -> bool:
    """Whether the tensors are the state of one or more samples of this model."""
    parts = {f"{i}.{j}": part for i, layer in enumerate(model.init_state(1)) for j, part in enumerate(layer)}
    expected = {name: (part.dtype, part.shape[1:]) for name, part in parts.items()}
    expected |= {"logits": (torch.float32, model.head.weight.shape[:1]), "drawn": (torch.int64, torch.Size([]))}
    if {name: (t.dtype, t.shape[1:]) for name, t in tensors.items()} != expected or (tensors["drawn"] < 0).any():
        return False
    samples = tensors["drawn"].shape[:1]
    return {t.shape[:1] for t in tensors.values()} == {samples} and samples > (0,)
