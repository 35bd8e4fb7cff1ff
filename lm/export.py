"""A trained model as three files to pass on: `python -m lm.export RUN FOLDER`.

FOLDER/
  model.safetensors  the weights; its metadata says the format's version and where they come from
  config.yaml        the configuration of the run
  tokenizer.json     a `tokenizers` file
  README.md          the same in words: losses, command, provenance

`lm.load`, generate.py and lm.evaluate take such a folder as they take a run. It holds data only, never code.
"""

import json
import math
import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.config import LARGEST, Parser, UserError, from_yaml
from lm.files import read_text
from lm.tokenizer import CharTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from lm.run import Trained

FORMAT, VERSION = "char-lm", 1
"""What the metadata of model.safetensors says."""
TYPES = ("float32", "bfloat16")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m lm.export",
        usage="RUN FOLDER [--which best|last] [--weights float32|bfloat16]",
        description="Write a model's weights, configuration and tokenizer into a new folder, as data.",
    )
    parser.add_argument("run", help="a run's name or folder, a checkpoint file, or an exported folder")
    parser.add_argument("folder", help="the folder to make")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="which checkpoint of a run")
    parser.add_argument("--weights", choices=TYPES, default="float32", help="bfloat16 is half the size, and inexact")
    arguments = parser.parse_args(argv)
    try:
        export(arguments.run, Path(arguments.folder), arguments.which, arguments.weights)
    except UserError as error:
        parser.error(str(error))
    print(f"wrote {arguments.folder}; use it with: python generate.py {arguments.folder}", file=sys.stderr)


def export(run: str | os.PathLike[str], folder: Path, which: str = "best", weights: str = "float32") -> None:
    """Write the folder, whole or not at all.

    Raises:
        UserError: there is no such model, the folder exists, or it cannot be written.
    """
    from safetensors.torch import save

    from lm.run import load_with_config, read_trained

    if folder.exists():
        raise UserError(f"{folder} exists; give another folder, or remove it first")
    path = _source(os.fspath(run), which)
    load_with_config(path)  # refuses what does not fit together
    saved = read_trained(path)
    about = provenance(saved, weights)
    metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
    files = {
        "model.safetensors": save(converted(saved.weights, weights), metadata),
        "config.yaml": saved.config.to_yaml().encode(),
        "tokenizer.json": saved.tokenizer.to_json().encode(),
        "README.md": card(about).encode(errors="replace"),
    }
    try:
        _write_folder(folder, files)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None


def read_export(folder: Path) -> "Trained":
    """A folder that `export` wrote.

    Raises:
        UserError: it is damaged, not one of these, or written by a newer version.
    """
    from safetensors import SafetensorError, safe_open

    from lm.run import Trained

    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path}: not exported by this program (python -m lm.export)")
            if int(metadata["version"]) > VERSION:
                raise UserError(f"{path}: exported by a newer version of this program (format {metadata['version']})")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["about"])
        if not isinstance(about, dict):
            raise ValueError("its provenance is no record")
    except FileNotFoundError:
        raise UserError(f"{folder}: no model.safetensors there; is the folder whole?") from None
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not an exported model: {error}") from None
    options = folder / "config.yaml"
    config = from_yaml(read_text(options, LARGEST), options)
    return Trained(path, weights, config, CharTokenizer.load(folder / "tokenizer.json"), about)


def _source(run: str, which: str) -> Path:
    """The checkpoint file or export folder to read."""
    from lm.run import locate

    path = locate(run)
    if which == "last" and path.name == "best.ckpt" and not Path(run).is_file():
        path = path.with_name("last.ckpt")
        if not path.exists():
            raise UserError(f"no checkpoint {path}")
    return path


def converted(weights: "dict[str, Tensor]", name: str) -> "dict[str, Tensor]":
    """The weights in a type of TYPES."""
    import torch

    return {key: weight.to(getattr(torch, name)).contiguous() for key, weight in weights.items()}


def provenance(saved: "Trained", weights: str) -> dict[str, Any]:
    """Where weights come from, as far as it is known: of a checkpoint in its run folder, everything."""
    from lm.run import Run

    if saved.path.name == "model.safetensors":
        return saved.about | {"weights": weights}
    run = Run(saved.path.parent.parent)
    about: dict[str, Any] = {"run": saved.config.name, "checkpoint": saved.path.name, "step": saved.about["step"]}
    about |= {"mixer": saved.config.mixer_name, "corpus": saved.config.data.corpus, "seed": saved.config.seed}
    about |= {"parameters": sum(weight.numel() for weight in saved.weights.values()), "weights": weights}
    if (run.path / "config.yaml").is_file():
        about["losses"] = run.losses_at(saved.about["step"])
        with suppress(UserError, ValueError, RecursionError, TypeError, KeyError, IndexError):
            environment = json.loads(read_text(run.path / "environment.json", LARGEST))
            environment["command"][0] = Path(environment["command"][0]).name  # not where this machine has it
            about["environment"] = environment
    return about


def card(about: dict[str, Any]) -> str:
    """README.md of an export."""
    environment = about.get("environment", {})
    losses = about.get("losses", {})
    lines = [
        f"# A character-level {about.get('mixer', 'language')} model",
        "",
        f"{about.get('parameters', 0):,} parameters, {about.get('weights')}; its configuration is in config.yaml.",
        "No file here holds code.",
        "",
        f"- trained on {about.get('corpus')}, the first nine tenths; losses are of the last tenth",
        f"- run {about.get('run')}, {about.get('checkpoint')}, step {about.get('step')}, seed {about.get('seed')}",
    ]
    names = (("val/loss", "windowed"), ("val/loss_streaming", "streaming"))
    lines += [
        f"- {text} loss {losses[name]:.4f} nats per character ({losses[name] / math.log(2):.4f} bits)"
        for name, text in names
        if name in losses
    ]
    if about.get("weights") != "float32" and losses:
        lines += ["- the losses are those of the float32 weights that these were rounded from"]
    if environment:
        words, versions = environment.get("command"), environment.get("packages")
        command = shlex.join(["python", *map(str, words if isinstance(words, list) else [])])
        versions = versions if isinstance(versions, dict) else {}
        packages = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines += [f"- trained by `{command}` on {environment.get('cores')} cores ({environment.get('processor')})"]
        lines += [f"- with Python {environment.get('python')}, {packages}"]
    lines += ["", "This file was written by `python -m lm.export`. Use the folder where a run is asked for:", ""]
    return "\n".join([*lines, "    python generate.py FOLDER", "    python -m lm.evaluate FOLDER", ""])


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part.mkdir()
    try:
        for name, data in files.items():
            with (part / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
