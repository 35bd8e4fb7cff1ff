"""The Triton kernels: their values, that they compile for a GPU, and that torch.compile leaves them alone.

None of it needs a GPU. The values are tested by `triton_kernels.py`, in a process of its own because Triton decides
when it is imported whether it interprets; on a machine with a GPU the same tests run there instead.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lm.config.options import ModelConfig
from lm.model import LanguageModel
from lm.recurrence import portable
from tests.commands import ROOT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_values(which):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if DEVICE == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which]
    command.append("tests/recurrence/triton_kernels.py")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


# ---------------------------------------------------------------- compiling without a GPU

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Compiler:
    """Stands in for a kernel: instead of launching it, compiles it for an H100 as the arguments demand."""

    def __init__(self, kernel, assembly: list[str]) -> None:
        self.kernel, self.assembly = kernel, assembly

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *arguments, num_warps: int, enable_fp_fusion: bool, **constants: int) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        self.constants: dict[tuple[int, ...], int | None] = {}
        names = self.kernel.arg_names
        values = [*arguments, *(constants[name] for name in names[len(arguments) :])]
        fixed = {i for i, name in enumerate(names) if name in constants}
        types = {name: self.type_of(x, (i,), i in fixed) for i, (name, x) in enumerate(zip(names, values, strict=True))}
        source = ASTSource(self.kernel, types, constexprs=self.constants)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        self.assembly.append(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])

    def type_of(self, x, place: tuple[int, ...], fixed: bool):
        """Triton's name for the type of an argument; what is known when compiling is noted by its place."""
        if isinstance(x, tuple):
            return tuple(self.type_of(y, (*place, i), fixed) for i, y in enumerate(x))
        if x is None or fixed:
            self.constants[place] = x
            return "constexpr"
        return TYPES[x.dtype] if isinstance(x, Tensor) else "i32"


@needs_triton
@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="the interpreter does not compile")
@pytest.mark.parametrize(("parts", "dtype"), [(2, torch.bfloat16), (3, torch.float32)], ids=["minGRU", "minLSTM"])
def test_compiles_for_an_h100(monkeypatch, tmp_path, parts, dtype):
    """Every kernel that a cell launches on a long sequence; no lane waits for another in any of them."""
    from lm.recurrence import cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda, "STEPS", 4)  # the more are unrolled, the longer it takes
    assembly: list[str] = []
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(cuda, name, Compiler(getattr(cuda, name), assembly))
    x, h0 = torch.zeros(1, 1000, parts * 32, dtype=dtype), torch.zeros(1, 32)
    kind = portable.Kind(parts - 1)
    h, h_last = cuda.scan_forward(kind, (x,), h0)
    cuda.scan_backward(kind, x, (torch.empty_like(x),), h, h0, h, h_last)
    assert len(assembly) == 6  # forward and backward: the chunks' sums, the scan over them, and the walk
    assert not any("bar.sync" in ptx or "shfl" in ptx for ptx in assembly)


# ---------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("mixer", ["mingru", "minlstm"])
def test_whole_model_compiles_in_one_graph(mixer):
    """No graph break; the same outputs and gradients. Traced with its backward, but not turned into machine code."""
    torch.manual_seed(0)
    model = LanguageModel(11, ModelConfig(mixer=mixer, width=16, layers=2, residual_init=1.0)).to(DEVICE).eval()
    torch.nn.init.normal_(model.head.weight)
    ids = torch.randint(11, (2, 9), device=DEVICE)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (want, want_state), (got, state) = model(ids), compiled(ids)
    torch.testing.assert_close((got, state), (want, want_state))
    grads = (torch.autograd.grad(logits.square().sum(), list(model.parameters())) for logits in (got, want))
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-4)  # native operations against the portable ones
