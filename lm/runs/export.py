"""A trained model as a folder of files to share: what `char-lm export` writes by default.

FOLDER/
  model.safetensors  the weights; its metadata has the version of the format, the checksum and the provenance
  config.yaml        the configuration of the run
  tokenizer.json     a `tokenizers` file
  README.md          losses, command, provenance

`lm.load`, `char-lm generate` and `char-lm evaluate` accept such a folder in place of a run. It holds data, never code.
"""

import json
import math
import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm.config.strict_yaml import LARGEST
from lm.files import UserError, read_text, writing
from lm.runs.folder import Run
from lm.runs.load import FORMAT, VERSION, Trained, digest_of, locate, make_model, read_trained

USAGE = """Use the folder where a run is asked for:

    char-lm generate FOLDER
    char-lm evaluate FOLDER"""
"""The end of README.md."""


def export(run: str | os.PathLike[str], folder: Path, which: str = "best", weights: str = "float32") -> str:
    """Write the folder: all of it or, after an error, nothing. Returns how to use it, in a line.

    Raises:
        UserError: there is no such model, the folder exists, or it cannot be written.
    """
    check_new(folder)
    write_folder(folder, make_files(read_chosen(run, which, weights)))
    return f"use it with: char-lm generate {folder}"


def make_files(saved: Trained, usage: str = USAGE) -> dict[str, bytes]:
    """The files of an export by their names; `usage` is the end of README.md."""
    from safetensors.torch import save

    about = provenance(saved)
    metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
    return {
        "model.safetensors": save(saved.weights, metadata),
        "config.yaml": saved.config.to_yaml().encode(),
        "tokenizer.json": saved.tokenizer.to_json().encode(),
        "README.md": card(about, usage).encode(errors="replace"),
    }


def read_chosen(run: str | os.PathLike[str], which: str, weights: str = "float32") -> Trained:
    """Read a run's best or last checkpoint, a checkpoint file, or an export, with weights of a type.

    Raises:
        UserError: there is none, or its parts do not fit together.
    """
    import torch

    path = locate(os.fspath(run))
    if which == "last" and path.name == "best.ckpt" and not Path(run).is_file():
        path = path.with_name("last.ckpt")
    saved = read_trained(path)
    make_model(saved)  # refuses weights that do not fit the configuration
    converted = {name: weight.to(getattr(torch, weights)).contiguous() for name, weight in saved.weights.items()}
    return replace(saved, weights=converted)


def provenance(saved: Trained) -> dict[str, Any]:
    """Where weights come from, their type and checksum; of a checkpoint in its run folder losses and environment."""
    kind = str(next(iter(saved.weights.values())).dtype).removeprefix("torch.")
    now = {"weights": kind, "sha256": digest_of(saved.weights)}
    if saved.path.name == "model.safetensors":
        return saved.about | now
    folder = Run(saved.path.parent.parent)
    about: dict[str, Any] = {"run": saved.config.name, "checkpoint": saved.path.name, "step": saved.about["step"]}
    about |= {"mixer": saved.config.mixer_name, "corpus": saved.config.data.corpus, "seed": saved.config.seed}
    about["unit"] = saved.tokenizer.unit
    about["parameters"] = sum(weight.numel() for weight in saved.weights.values())
    if (folder.path / "config.yaml").is_file():
        about["losses"] = folder.losses_at(saved.about["step"])
        with suppress(UserError, ValueError, RecursionError, TypeError, KeyError, IndexError):
            environment = json.loads(read_text(folder.path / "environment.json", LARGEST))
            environment["command"][0] = Path(environment["command"][0]).name  # not where this machine has it
            about["environment"] = environment
    return about | now


def card(about: dict[str, Any], usage: str = USAGE) -> str:
    """README.md of an export; `usage` is its end."""
    environment, losses = (_record(about.get(name)) for name in ("environment", "losses"))
    losses = {name: value for name, value in losses.items() if isinstance(value, float)}
    parameters = about["parameters"] if isinstance(about.get("parameters"), int) else 0
    lines = [
        f"# A character-level {about.get('mixer', 'language')} model",
        "",
        f"{parameters:,} parameters, {about.get('weights')}; its configuration is in config.yaml.",
        "No file here holds code.",
        "",
        f"- trained on {about.get('corpus')}, the first nine tenths; losses are of the last tenth",
        f"- run {about.get('run')}, {about.get('checkpoint')}, step {about.get('step')}, seed {about.get('seed')}",
        f"- SHA-256 of the weights: {about.get('sha256')}",
    ]
    names, unit = (("val/loss", "windowed"), ("val/loss_streaming", "streaming")), about.get("unit", "character")
    lines += [
        f"- {text} loss {losses[name]:.4f} nats per {unit} ({losses[name] / math.log(2):.4f} bits)"
        for name, text in names
        if name in losses
    ]
    if about.get("weights") != "float32" and losses:
        lines += ["- the losses are those of the float32 weights that these were rounded from"]
    if environment:
        words, versions = environment.get("command"), environment.get("packages")
        program, *rest = [str(word) for word in words] if isinstance(words, list) and words else [""]
        start = ["char-lm"] if Path(program).name in ("__main__.py", "char-lm") else ["python", program]
        command = shlex.join([*start, *rest])
        packages = ", ".join(f"{name} {version}" for name, version in _record(versions).items())
        lines += [f"- trained by `{command}` on {environment.get('cores')} cores ({environment.get('processor')})"]
        lines += [f"- with Python {environment.get('python')}, {packages}"]
    return "\n".join([*lines, "", "This file was written by `char-lm export`.", "", usage, ""])


def _record(value: Any) -> dict[str, Any]:
    """The value if it is a record: a stranger's export may have anything there."""
    return value if isinstance(value, dict) else {}


def check_new(folder: Path) -> None:
    """Raise UserError if there is something with this name already."""
    if folder.exists():
        raise UserError(f"{folder} exists; give another folder, or remove it first")


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write into a folder of another name, and rename it when it is complete. Raises UserError if that fails."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
            for name, data in files.items():
                with (part / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
