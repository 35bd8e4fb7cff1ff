"""A trained model as ONNX graphs, for onnxruntime and other programs: `char-lm export --format onnx`.

FOLDER/
  step.onnx      ids (B), state -> logits of the next id (B, V), state
  sequence.onnx  ids (B, T), state -> logits at each position (B, T, V), state
  config.yaml tokenizer.json README.md, as in lm/runs/export.py

Batch and length are dynamic, ids are int64. The states are inputs `state.LAYER.PART` and outputs `next.LAYER.PART`, in
one order; before the first character all are zero. The metadata of both graphs has the configuration, the tokenizer and
the provenance. Where onnxruntime is installed, both are compared with the model before anything is written.
"""

import itertools
import json
import math
import os
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from lm.files import UserError
from lm.model import LanguageModel, ModelState
from lm.runs.export import card, check_new, provenance, read_chosen, write_folder
from lm.runs.load import FORMAT, VERSION, make_model
from lm.runs.onnx.graph import Graph
from lm.runs.onnx.layers import add_model

OPSET, IR = 20, 9
"""Versions of ONNX 1.15, which onnxruntime reads since 1.17."""
LARGEST = 2**31 - 2**20
"""Bytes of weights that one file can hold: it is a protocol buffer."""
TOLERANCE = 1e-5
"""The largest difference between logits of a graph and of the model, relative to the largest logit."""
USAGE = """Both graphs read ids and give the logits of the next id: step.onnx reads one, sequence.onnx several at once.
Batch and length are dynamic. States start at zero; the outputs `next.*` of a call are the inputs `state.*` of the next:

    import numpy as np, onnxruntime
    session = onnxruntime.InferenceSession("step.onnx")
    ids, *states = session.get_inputs()
    state = {x.name: np.zeros([1, *x.shape[1:]], np.int64 if "int64" in x.type else np.float32) for x in states}
    logits, *new = session.run(None, {"ids": np.array([0]), **state})
    state = dict(zip(state, new))

Ids are those of tokenizer.json. The metadata of both graphs has the tokenizer, the configuration and the provenance."""
"""The end of README.md."""


def export(run: str | os.PathLike[str], folder: Path, which: str = "best", weights: str = "float32") -> str:
    """Write the folder: all of it or, after an error, nothing. Returns how the graphs compare with the model, in words.

    Raises:
        UserError: there is no such model, it cannot be expressed, the folder exists, or it cannot be written.
    """
    check_new(folder)
    saved = read_chosen(run, which)
    model = make_model(saved)
    about = provenance(saved)
    texts = {"config.yaml": saved.config.to_yaml(), "tokenizer.json": saved.tokenizer.to_json()}
    metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
    metadata |= {"config": texts["config.yaml"], "tokenizer": texts["tokenizer.json"]}
    graphs = {name: make_graph(model, name == "sequence", metadata) for name in ("step", "sequence")}
    message = compare(model, graphs)
    files = {f"{name}.onnx": graph for name, graph in graphs.items()}
    files |= {name: text.encode() for name, text in texts.items()}
    write_folder(folder, files | {"README.md": card(about, USAGE).encode(errors="replace")})
    return message


@torch.no_grad()
def make_graph(model: LanguageModel, sequence: bool, metadata: dict[str, str]) -> bytes:
    """A file with the graph of a model: of one step, or of a sequence.

    Raises:
        UserError: a mixer cannot be expressed, or the weights are too large for a file.
    """
    if 4 * model.parameters_total > LARGEST:
        raise UserError(f"--format onnx: {model.parameters_total:,} weights are too many for a file of 2 GB")
    graph = Graph(sequence, {weight.data_ptr(): name for name, weight in model.named_parameters()})
    add_model(graph, model)
    axes = ["batch", "length"] if sequence else ["batch"]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, axes)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*axes, model.head.out_features])]
    for i, state in enumerate(model.init_state(1)):
        for j, part in enumerate(state):
            kind = TensorProto.FLOAT if part.is_floating_point() else TensorProto.INT64
            for name, side in (("state", inputs), ("next", outputs)):
                side.append(helper.make_tensor_value_info(f"{name}.{i}.{j}", kind, ["batch", *part.shape[1:]]))
    weights = [numpy_helper.from_array(x.contiguous().numpy(), name) for name, x in graph.weights.items()]
    made = helper.make_graph(graph.nodes, "sequence" if sequence else "step", inputs, outputs, weights)
    proto = helper.make_model(made, producer_name=FORMAT, ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


class Session:
    """A graph in onnxruntime, called as the model is: (ids, state) -> (logits, state).

    Args:
        graph: the content of the file.
        threads: of one operation.
    """

    def __init__(self, graph: bytes, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Run the graph; ids are (B) or (B, T)."""
        flat = [part for parts in state for part in parts]
        names = (given.name for given in self.session.get_inputs())
        fed = {name: x.detach().numpy() for name, x in zip(names, [ids, *flat], strict=True)}
        logits, *new = map(torch.from_numpy, self.session.run(None, fed))
        rest = iter(new)
        return logits, tuple(tuple(itertools.islice(rest, len(parts))) for parts in state)


def difference(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value; infinite if there is a NaN."""
    error = ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30)).item()
    return math.inf if math.isnan(error) else error


@torch.no_grad()
def errors(model: LanguageModel, step: Session, sequence: Session, ids: Tensor) -> dict[str, float]:
    """Differences of the graphs' logits from the model's over ids (B, T), in a few ways that must all give the same.

    Returns:
        `sequence`: from the initial state; `continued`: in two calls, with the state of the first; `steps`: in steps
        from that state.
    """
    start, half = model.init_state(len(ids)), ids.shape[1] // 2
    want = model(ids)[0]
    first, state = sequence(ids[:, :half], start)
    second, _ = sequence(ids[:, half:], state)
    steps = []
    for ids_t in ids[:, half:].unbind(1):
        logits, state = step(ids_t.contiguous(), state)
        steps.append(logits)
    return {
        "sequence": difference(sequence(ids, start)[0], want),
        "continued": difference(torch.cat([first, second], dim=1), want),
        "steps": difference(torch.stack(steps, dim=1), want[:, half:]),
    }


def compare(model: LanguageModel, graphs: dict[str, bytes], length: int = 96) -> str:
    """Compare graphs with the model on random ids. Returns the result, in words.

    Raises:
        UserError: they differ by more than TOLERANCE.
    """
    try:
        import onnxruntime
    except ImportError:
        return "not compared with the model, which needs onnxruntime: pip install onnxruntime"
    ids = torch.randint(model.head.out_features, (2, length), generator=torch.Generator().manual_seed(0))
    found = errors(model, Session(graphs["step"]), Session(graphs["sequence"]), ids)
    way, error = max(found.items(), key=lambda item: item[1])
    if not error <= TOLERANCE:
        raise UserError(f"--format onnx: logits of the graphs are off by {error:.1e} ({way}); nothing was written")
    return f"its logits are the model's to {error:.0e} in onnxruntime {onnxruntime.__version__}"
