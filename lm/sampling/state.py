"""A state file: where texts stand, so that what was read once can be gone on from. A safetensors file of the positions'
tensors, tagged with the model's hash: the state of one model means nothing to another.
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
from lm.files import UserError, atomic_open
from lm.model import LanguageModel, ModelState
from lm.sampling.decoder import Position

FORMAT = "char-lm state"


VERSION = 1


def fingerprint(model: LanguageModel, characters: str, config: ModelConfig) -> str:
    """SHA-256, in hexadecimal, of all that a state depends on: weights, what they are for, and the vocabulary."""
    described = {name: value for name, value in asdict(config).items() if name not in ("dropout", "compile")}
    return _digest(hashlib.sha256(json.dumps([described, characters], sort_keys=True).encode()), model.state_dict())


def _digest(digest: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal, of what went in before and the tensors by their names."""
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return str(digest.hexdigest())


def save(path: Path, positions: Sequence[Position], seed: int, model_hash: str) -> None:
    """Write the state of one or more samples, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    tensors = {
        f"{layer}.{part}": torch.cat([p.state[layer][part] for p in positions]).cpu().contiguous()
        for layer, parts in enumerate(positions[0].state)
        for part in range(len(parts))
    }
    tensors["logits"] = torch.stack([torch.from_numpy(p.logits) for p in positions])
    tensors["drawn"] = torch.tensor([p.drawn for p in positions])
    metadata = {"format": FORMAT, "version": str(VERSION), "model": model_hash, "seed": str(seed)}
    metadata["sha256"] = _digest(hashlib.sha256(str(seed).encode()), tensors)
    with atomic_open(path) as file:
        file.write(to_bytes(tensors, metadata))


def load(path: Path, model: LanguageModel, model_hash: str) -> tuple[list[Position], int]:
    """The positions of a state file, one per sample, and the seed of their streams of randomness.

    Raises:
        UserError: the file is missing, damaged, no state file, or the state of another model.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a plain file, so not a state file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check(path, metadata, model_hash)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        seed = int(metadata["seed"])
        if metadata["sha256"] != _digest(hashlib.sha256(str(seed).encode()), tensors):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        raise UserError(f"no state file {path}") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged, or not a state file: {error}") from None
    like = {f"{i}.{j}": part for i, layer in enumerate(model.init_state(1)) for j, part in enumerate(layer)}
    samples = _samples(tensors, like, model.head.weight.shape[0])
    if not samples or not 0 <= seed < 2**64:
        raise UserError(f"{path}: damaged: its tensors are not those of a state of this model")
    parts = {name: tensors[name].to(model.head.weight.device).split(1) for name in like}
    rows = [_nested({name: split[n] for name, split in parts.items()}) for n in range(samples)]
    logits, drawn = tensors["logits"].numpy(), tensors["drawn"].tolist()
    return [Position(*values) for values in zip(rows, logits, drawn, strict=True)], seed


def _nested(parts: dict[str, torch.Tensor]) -> ModelState:
    """The state whose parts are named `layer.part`."""
    layers: dict[str, list[torch.Tensor]] = {}
    for name, part in parts.items():
        layers.setdefault(name.split(".")[0], []).append(part)
    return tuple(map(tuple, layers.values()))


def _check(path: Path, metadata: dict[str, str], model_hash: str) -> None:
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a state file of this program")
    if int(metadata["version"]) > VERSION:
        raise UserError(f"{path}: written by a newer version of this program (format {metadata['version']})")
    if metadata.get("model") != model_hash:
        raise UserError(f"{path}: the state of another model; load it with the model that saved it")


def _samples(tensors: dict[str, torch.Tensor], like: dict[str, torch.Tensor], vocabulary: int) -> int:
    """How many samples the tensors are the state of; 0 where they are none, or not all there."""
    expected = {name: (part.dtype, part.shape[1:]) for name, part in like.items()}
    expected |= {"logits": (torch.float32, torch.Size([vocabulary])), "drawn": (torch.int64, torch.Size([]))}
    if {name: (t.dtype, t.shape[1:]) for name, t in tensors.items()} != expected or (tensors["drawn"] < 0).any():
        return 0
    sizes = {t.shape[:1] for t in tensors.values()}
    return sum(sizes.pop()) if len(sizes) == 1 else 0
