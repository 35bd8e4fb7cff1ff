"""`char-lm export`: a trained model in files that can be passed on and read elsewhere."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lm.config.fields import POSITIONAL
from lm.files import import_optional

USAGE = "RUN OUTPUT [--format folder|onnx] [--which best|last] [--weights float32|bfloat16]"
FORMATS = {"folder": "lm.runs.export", "onnx": "lm.runs.onnx"}
"""The module of each format. Its `export(run, output, which, weights)` writes all of it or, after an error, nothing; it
returns how to use what it wrote, in a line."""


@dataclass
class Options:
    """Write a model into new files, as data: weights, configuration, tokenizer, and where they come from."""

    run: Annotated[str, POSITIONAL]
    """a run's name or folder, a checkpoint file, or an exported folder"""
    output: Annotated[str, POSITIONAL]
    """the folder or file to make"""
    format: Literal["folder", "onnx"] = "folder"
    """folder: safetensors, YAML and JSON, for this program; onnx: graphs of a step and a sequence, for onnxruntime"""
    which: Literal["best", "last"] = "best"
    """which checkpoint of a run"""
    weights: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is half the size, and inexact"""


def run(options: Options) -> int:
    """Export, and print how to use what was written. Returns the exit code."""
    module = import_optional(FORMATS[options.format], f"--format {options.format}")
    usage = module.export(options.run, Path(options.output), options.which, options.weights)
    print(f"wrote {options.output}; {usage}", file=sys.stderr)
    return 0
