"""Checkpoint files: atomic writing, reading as data, metadata."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.files import UserError, atomic_open

APPENDED = ("metrics.csv", "samples.jsonl")
"""Files of the run folder to which training appends: a checkpoint records their sizes."""


@dataclass
class CheckpointInfo:
    """Metadata of a checkpoint that training can resume from."""

    path: Path
    step: int
    seconds: float
    """of training"""
    sizes: dict[str, int]
    """of the APPENDED files, in bytes"""
    best_step: int
    """step with the lowest validation loss so far"""
    corpus: str = ""
    """checksum of the text, empty if it is unknown"""

    @classmethod
    def read(cls, path: Path) -> "CheckpointInfo":
        """Read a checkpoint. Raises UserError if it is damaged, or not one to resume from."""
        checkpoint = read_checkpoint(path)
        callbacks, step = checkpoint.get("callbacks"), checkpoint.get("global_step")
        recorder = callbacks.get("Recorder", {}) if isinstance(callbacks, dict) else {}
        known = _matches(recorder, {"seconds": float, "sizes": dict, "best_step": int})
        if not known or not _matches(recorder["sizes"], dict.fromkeys(APPENDED, int)) or not isinstance(step, int):
            raise UserError(f"{path}: not a checkpoint that training can go on from")
        corpus = recorder.get("corpus")
        sizes = {name: recorder["sizes"][name] for name in APPENDED}
        digest = corpus if isinstance(corpus, str) else ""
        return cls(path, step, recorder["seconds"], sizes, recorder["best_step"], digest)


def save_atomically(checkpoint: dict[str, Any], path: Path, previous: str | None = None) -> None:
    """Write a checkpoint as `lm.files.atomic_open` does; the one before stays under the name `previous`."""
    import torch

    with atomic_open(path, previous) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # of closing the archive, after an OSError
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as data, on the CPU: tensors and plain values, never code.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this program.
    """
    import torch

    if not path.exists():
        raise UserError(f"no checkpoint {path}")
    if not path.is_file():
        raise UserError(f"{path}: not a plain file, so not a checkpoint")
    try:
        _require_undamaged(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "Weights only load failed" in reason:
            reason = "it holds more than tensors and plain values, and nothing else is loaded"
        raise UserError(f"{path}: damaged, or not a checkpoint: {reason}") from None
    if not _matches(checkpoint, {"state_dict": dict, "config": str, "characters": str}) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in checkpoint["state_dict"].items()
    ):
        raise UserError(f"{path}: not a checkpoint of this program")
    return checkpoint


def _require_undamaged(path: Path) -> None:
    """Verify the checksums of the archive, which torch.load does not. Raises OSError or BadZipFile."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile("it is compressed")  # torch.save never does that; it could be a bomb
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is not as it was written")


def _matches(record: Any, types: dict[str, type]) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in types.items())
