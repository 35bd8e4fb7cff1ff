"""The WebAssembly module of the package is what `make wasm` makes of packed.c today."""

import re
import shutil
import subprocess

import pytest

from lm.files import UserError
from lm.sampling.web import build

needs_clang = pytest.mark.skipif(
    not (shutil.which("clang") and shutil.which("wasm-ld")), reason="no clang or lld: apt-get install clang lld"
)


def test_the_size_of_the_module():
    assert build.MODULE.stat().st_size < 100_000


@needs_clang
def test_the_module_is_the_one_of_the_source(tmp_path):
    """Byte for byte, where the compiler is the one whose name the module has."""
    path = tmp_path / "packed.wasm"
    build.build(path)
    kept, new = build.MODULE.read_bytes(), path.read_bytes()
    version = re.search(rb"[\d.]+", subprocess.run(["clang", "--version"], capture_output=True, check=True).stdout)
    assert version and version[0] in new
    if version[0] not in kept:
        pytest.skip(
            f"made by another clang than {version[0].decode()}: tests/sampling/web/test_engine.py compares them"
        )
    assert new == kept, "packed.c has changed: make wasm"


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^clang and wasm-ld not found: apt-get install clang lld$"):
        build.build(tmp_path / "packed.wasm")
    assert not list(tmp_path.iterdir())


@needs_clang
def test_a_failing_compiler(tmp_path, monkeypatch):
    source = tmp_path / "broken.c"
    source.write_text("int trace(void) { return nothing; }")
    monkeypatch.setattr(build, "SOURCE", source)
    with pytest.raises(UserError, match=r"clang cannot build packed.wasm: .*nothing"):
        build.build(tmp_path / "packed.wasm")
    assert not (tmp_path / "packed.wasm").exists()
