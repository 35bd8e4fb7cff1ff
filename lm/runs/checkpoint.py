"""Checkpoint files: atomic writes, reading as data, metadata."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.files import UserError, atomic_open
from lm.runs.metrics import APPENDED


@dataclass
class Saved:
    """What a checkpoint says of its run: the step, the seconds of training, the sizes of the files that grow, the step
    that was best so far, the digest of the text.
    """

    path: Path
    step: int
    seconds: float
    sizes: dict[str, int]
    best_step: int
    corpus: str = ""

    @classmethod
    def read(cls, path: Path) -> "Saved":
        """Raises UserError: the file is damaged, or not a checkpoint to resume from."""
        checkpoint = read_checkpoint(path)
        callbacks = checkpoint.get("callbacks")
        recorder = callbacks.get("Recorder", {}) if isinstance(callbacks, dict) else {}
        step = checkpoint.get("global_step")
        whole = _has(recorder, {"seconds": float, "sizes": dict, "best_step": int}) and _has(
            recorder["sizes"], dict.fromkeys(APPENDED, int)
        )
        if not whole or not isinstance(step, int):
            raise UserError(f"{path}: not a checkpoint that training can go on from")
        sizes = {name: recorder["sizes"][name] for name in APPENDED}
        corpus = recorder.get("corpus")
        digest = corpus if isinstance(corpus, str) else ""
        return cls(path, step, recorder["seconds"], sizes, recorder["best_step"], digest)


def save_atomically(checkpoint: dict[str, Any], path: Path, previous: str | None = None) -> None:
    """Write a checkpoint, see `replacing`."""
    import torch

    with atomic_open(path, previous) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # of closing the archive, after what it could not write
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
    if not _has(checkpoint, {"state_dict": dict, "config": str, "characters": str}) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in checkpoint["state_dict"].items()
    ):
        raise UserError(f"{path}: not a checkpoint of this program")
    return checkpoint


def _require_undamaged(path: Path) -> None:
    """Raises OSError or BadZipFile unless all in this archive is as it was written; torch.load would not look."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile("it is compressed")  # which torch.save never does, and a bomb is
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is not as it was written")


def _has(record: Any, kinds: dict[str, type]) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in kinds.items())
