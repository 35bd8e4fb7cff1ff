"""Lightning without torch's compiler: what it takes from the compiler works once that is imported."""

import subprocess
import sys

from tests.commands import ROOT


def run(code: str) -> str:
    """What a program prints that has imported Lightning and nothing of the compiler."""
    start = """import sys
from lm.training.lightning import import_lightning
import_lightning()
import torch
from lightning.fabric.wrappers import _unwrap_compiled
from lightning.pytorch.utilities.compile import OptimizedModule
model = torch.nn.Linear(2, 2)
"""
    return subprocess.run(
        [sys.executable, "-c", start + code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_nothing_is_a_compiled_module_before_the_compiler_is_imported():
    code = (
        "print(isinstance(model, OptimizedModule), _unwrap_compiled(model)[0] is model, 'torch._dynamo' in sys.modules)"
    )
    assert run(code) == "False True False\n"


def test_compiled_modules_are_recognised():
    code = """compiled = torch.compile(model)
print(isinstance(compiled, OptimizedModule), isinstance(model, OptimizedModule), _unwrap_compiled(compiled)[0] is model)
print(torch._dynamo.OptimizedModule is type(compiled), sys.modules["torch._dynamo"].__file__ is not None)"""
    assert run(code) == "True False True\nTrue True\n"


def test_decorated_functions_are_not_traced():
    code = """from lm.training.lightning import disable
@disable
def untraced(x):
    return x + torch.compiler.is_compiling()
print(untraced(1))
@torch.compile(backend="eager")
def traced(x):
    return untraced(x) + 2 * torch.compiler.is_compiling()
print(traced(torch.zeros(())).item())"""
    assert run(code) == "1\n2.0\n"


def test_other_names_are_those_of_the_compiler():
    code = """from lm.training import lightning
del sys.modules["torch._dynamo"]
substitute = sys.modules["torch._dynamo"] = lightning._substitute()
from torch._dynamo import reset
print(reset.__module__)"""
    assert run("import torch._dynamo\n" + code.replace('del sys.modules["torch._dynamo"]\n', "")) == "torch._dynamo\n"
