"""ONNX graphs beside the models that they are of: the difference of the logits and, with --speed, the characters/s.

A model has random weights, none of them zero. The differences are those of `errors` in lm/runs/onnx; graphs that are
off by more than its tolerance are refused. Speeds are of batch 1, in one thread: a sequence at once and single steps,
in onnxruntime and by the model itself (`LanguageModel.forward` and `.step`).
"""

from collections.abc import Callable
from statistics import median
from types import ModuleType

import torch
from torch import Tensor

from lm.bench import measure, models, options
from lm.bench.measure import RefusedError, Row
from lm.config.options import MIXERS
from lm.files import import_optional
from lm.model import LanguageModel, ModelState
from lm.report.format import number

Session = Callable[[Tensor, ModelState], object]
VOCABULARY = 65
SPEEDS = ("sequence, chars/s", "model", "step, chars/s", "model")


def run(arguments: options.Onnx) -> Row:
    """All mixers, one after the other."""
    exported = import_optional("lm.runs.onnx", "char-lm bench onnx")
    runtime = import_optional("onnxruntime", "char-lm bench onnx")
    torch.set_num_threads(1)
    title = f"Relative difference of logits in onnxruntime {runtime.__version__}, {arguments.length:,} characters"
    about = measure.heading(f"{title}, {arguments.layers} layers of {arguments.width}", options.OnDevice(device="cpu"))
    rows: list[Row] = []
    for name in arguments.mixers or MIXERS:
        rows.append({"name": name})
        try:
            rows[-1] |= compare(exported, name, arguments)
        except RefusedError as error:
            rows[-1]["skipped"] = str(error)
    header = ("mixer", "at once", "in two parts", "by steps", "file, MB", *(SPEEDS if arguments.speed else ()))
    measure.print_table(header, rows, table_row)
    return {"conditions": about, "results": rows}


@torch.no_grad()
def compare(exported: ModuleType, name: str, arguments: options.Onnx) -> Row:
    """Differences and speeds of one mixer. Raises RefusedError if a difference is too large."""
    model = models.make(name, arguments.width, arguments.layers, VOCABULARY).eval()
    graphs = [exported.make_graph(model, sequence, {}) for sequence in (False, True)]
    step, sequence = map(exported.Session, graphs)
    errors = exported.errors(model, step, sequence, torch.randint(VOCABULARY, (2, arguments.length)))
    for way, error in errors.items():
        if not error <= exported.TOLERANCE:
            raise RefusedError(f"differs: {way} off by {error:.1e}")
    row: Row = {"errors": errors, "bytes": len(graphs[1]), "speeds": {}}
    return row | measure_speeds(model, step, sequence, arguments) if arguments.speed else row


def measure_speeds(model: LanguageModel, step: Session, sequence: Session, arguments: options.Onnx) -> Row:
    """Characters/s of the graphs and of the model, in the order of SPEEDS."""
    ids, state = torch.randint(VOCABULARY, (1, arguments.length)), model.init_state(1)
    calls: dict[str, measure.Call] = {
        "sequence": lambda: sequence(ids, state),
        "forward": lambda: model(ids, state),
        "step": lambda: step(ids[:, 0], state),
        "model step": lambda: model.step(ids[:, 0], state),
    }
    times = measure.in_turns(calls, arguments.repeat, torch.device("cpu"))
    chars = {name: arguments.length if name in ("sequence", "forward") else 1 for name in calls}
    return {"speeds": {name: chars[name] / median(times[name]) for name in calls}, "times": times}


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a mixer."""
    errors = (f"{error:.1e}" for error in row["errors"].values())
    return *errors, number(row["bytes"] / 1e6, ".1f"), *(number(speed, ",.0f") for speed in row["speeds"].values())
