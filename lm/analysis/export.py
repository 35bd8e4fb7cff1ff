"""`char-lm export`: a trained model in files that can be passed on and read elsewhere, or on the Hugging Face Hub."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lm.config.fields import POSITIONAL
from lm.config.options import COPYING
from lm.files import UserError, import_optional, printable

if TYPE_CHECKING:
    from lm.runs.load import Trained

USAGE = "RUN OUTPUT|--hub USER/NAME [--format folder|onnx|web] [--which best|last] [--weights float32|bfloat16|int8]"
FORMATS = {"folder": "lm.runs.export", "onnx": "lm.runs.onnx", "web": "lm.sampling.web.page"}
"""The module of each format. Its `export(run, output, which, weights)` writes all of it or, after an error, nothing; it
returns how to use what it wrote, in a line."""
WEIGHTS = {"folder": ("float32", "bfloat16"), "onnx": ("float32",), "web": ("bfloat16", "int8", "float32")}
"""The precisions of each format, its default first."""
SAMPLE = 400
"""Characters of the text in a model card."""


@dataclass
class Options:
    """Write a model into new files, as data: weights, configuration, tokenizer, and where they come from."""

    run: Annotated[str, POSITIONAL]
    """a run's name or folder, a checkpoint file, an exported folder, or hub:USER/NAME"""
    output: Annotated[str | None, POSITIONAL] = None
    """the folder or file to make"""
    format: Literal["folder", "onnx", "web"] = "folder"
    """folder: safetensors, YAML and JSON, for this program; onnx: graphs of a step and a sequence, for onnxruntime;
    web: one HTML file in which the model writes"""
    which: Literal["best", "last"] = "best"
    """which checkpoint of a run"""
    weights: Literal["float32", "bfloat16", "int8"] | None = None
    """bfloat16 is half the size and inexact; int8, a quarter, is for web only (default: float32; for web bfloat16)"""
    hub: str | None = None
    """upload the folder's files, with a model card, to this repository of the Hugging Face Hub, made if need be"""
    private: bool = False
    """with --hub: make a private repository"""


def run(options: Options) -> int:
    """Export, and print how to use what was written. Returns the exit code."""
    if (options.output is None) == (options.hub is None):
        raise UserError("give either the folder or file to make, or --hub USER/NAME")
    default, *others = WEIGHTS[options.format]
    if options.weights not in (None, default, *others):
        raise UserError(f"--weights of --format {options.format} must be {' or '.join(WEIGHTS[options.format])}")
    weights = options.weights or default
    if options.hub is not None:
        print(f"uploaded {upload(options, weights)}; use it with: char-lm generate hub:{options.hub}", file=sys.stderr)
        return 0
    module = import_optional(FORMATS[options.format], f"--format {options.format}")
    usage = module.export(options.run, Path(options.output or ""), options.which, weights)
    print(f"wrote {options.output}; {usage}", file=sys.stderr)
    return 0


def upload(options: Options, weights: str) -> str:
    """Upload a model with its card to --hub. Returns the address."""
    from lm.runs import hub
    from lm.runs.export import make_files, read_chosen

    assert options.hub is not None
    if options.format != "folder":
        raise UserError("--hub uploads what --format folder writes")
    hub.check_upload(options.hub)
    saved = read_chosen(options.run, options.which, weights)
    usage = "\n\n    ".join(["Use it where a run is asked for:", f"char-lm generate hub:{options.hub}"])
    files = make_files(saved, usage + sample(saved, options.hub))
    files["README.md"] = hub.front_matter(saved.config) + files["README.md"]
    return hub.upload(options.hub, files, options.private)


def sample(saved: "Trained", repository: str) -> str:
    """Text of a model and the command that writes it, for its card; nothing for a model of no text."""
    from lm.runs.load import make_model
    from lm.sampling import generate
    from lm.sampling.packed import pack

    if saved.config.data.corpus == COPYING:
        return ""
    text = "".join(generate(pack(make_model(saved)), saved.tokenizer, "", SAMPLE, temperature=0.8, seed=1))
    command = f"$ char-lm generate hub:{repository} --temperature 0.8 --seed 1 --chars {SAMPLE}"
    lines = [command, *map(printable, text.split("\n"))]
    return "\n".join(["", "", "A sample:", "", *(f"    {line}" for line in lines)])
