"""Compiling and loading C files."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from lm.native.build import BuildError, Library, build_ahead, warn_once
from lm.recurrence import cpu
from tests.commands import ROOT

SOURCE = '#include "kernel.h"\ndouble nearer(double x, int64_t y) { return x / 2 + clamp(y, 0, 10); }\n'


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A C file that includes kernel.h, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "nearer.c"
    path.write_text(SOURCE)
    return path


def library_of(source: Path) -> Library:
    """A library that this process has not loaded yet."""
    return Library(source, nearer=(ctypes.c_double, ctypes.c_double, ctypes.c_int64))


def compiled(source: Path) -> list[Path]:
    return sorted((source.parent / "cache" / "char-lm").iterdir())


@pytest.fixture
def compiler_calls(compiler, source, monkeypatch):
    """The command lines that the compiler is called with, without those that ask for its version."""
    log, script = source.with_name("calls"), source.with_name("logging-cc")
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo "$@" >> {log}\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return lambda: log.read_text().splitlines() if log.exists() else []


def test_functions_have_their_types(compiler, source):
    """Without them a double would come back as an int, and an int64 would lose its upper half."""
    assert library_of(source)().nearer(3.0, 1 << 40) == 11.5


def test_a_file_is_compiled_once(source, compiler_calls):
    library = library_of(source)
    assert library() is library()
    library_of(source)()
    assert len(compiler_calls()) == 1 and len(compiled(source)) == 1


def test_a_file_that_is_compiled_ahead_is_waited_for(source, compiler_calls):
    others = threading.active_count()
    build_ahead(source, source.with_name("missing.c"))
    assert library_of(source)().nearer(3.0, 1) == 2.5
    while threading.active_count() > others:
        time.sleep(0.01)
    assert len(compiler_calls()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_openmp_runtime_is_known_before_torch_is_imported():
    code = "from lm.native.build import _openmp_runtime as f; before = f(); import torch; print(before == f(), before)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("True /")


def test_a_changed_file_is_compiled_again(source, compiler_calls):
    library_of(source)()
    source.write_text(SOURCE.replace("x / 2", "x / 4"))
    assert library_of(source)().nearer(2.0, 0) == 0.5
    assert len(compiler_calls()) == 2 and len(compiled(source)) == 2


def test_other_flags_are_tried_where_the_best_are_refused(compiler, source, monkeypatch):
    """Such as those of an OpenMP that is not installed, or of the processor at hand."""
    script = source.with_name("old-cc")
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    refuse = 'for word; do case "$word" in -fopenmp|-march=native|-mcpu=native) exit 1;; esac; done'
    script.write_text(f'#!/bin/sh\n{refuse}\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert library_of(source)().nearer(1.0, 2) == 2.5


def no_compiler(monkeypatch, folder):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(folder))


def missing_compiler(monkeypatch, folder):
    monkeypatch.setenv("CC", str(folder / "no-such-compiler"))


def failing_compiler(monkeypatch, folder):
    script = folder / "cc"
    script.write_text("#!/bin/sh\n[ $1 = --version ] || { echo out of ideas >&2; exit 1; }\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [(no_compiler, "no C compiler"), (missing_compiler, "no-such-compiler"), (failing_compiler, "out of ideas")],
)
def test_without_a_compiler(source, monkeypatch, break_it, reason):
    """Every call says why; a compiler that comes later is not asked."""
    library = library_of(source)
    with monkeypatch.context() as context:
        break_it(context, source.parent)
        with pytest.raises(BuildError, match=rf"nearer\.c cannot be compiled: (.|\n)*{reason}"):
            library()
    with pytest.raises(BuildError, match=reason):
        library()


def test_a_cache_that_cannot_be_written(compiler, source, monkeypatch):
    source.with_name("file").write_text("in place of a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.with_name("file")))
    assert library_of(source)().nearer(1.0, 2) == 2.5


def test_processes_compile_at_once(compiler, tmp_path):
    """Two processes with one empty cache: both compute the right values, and one library is left."""
    code = "import torch; from lm import recurrence; print(recurrence.mingru_scan(torch.zeros(1, 2, 2))[0].tolist())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "LM_BACKEND": "native"}
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["[[[0.25], [0.375]]]"] * 2
    assert [path.suffix for path in (tmp_path / "char-lm").iterdir()] == [".so"]


def test_what_a_killed_process_left_is_removed(compiler, source):
    folder = source.parent / "cache" / "char-lm"
    folder.mkdir(parents=True)
    old, new = folder / ".scan.so.1-a.part", folder / ".scan.so.2-b.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    library_of(source)()
    assert not old.exists() and new.exists()


def test_the_kernels_are_compiled_from_the_package(compiler):
    assert cpu.library.source == ROOT / "lm" / "recurrence" / "scan.c"


def test_each_problem_is_shown_once():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for problem in ("one.c is missing", "one.c is missing", "two.c is missing"):
            warn_once(problem)
    assert [str(warning.message).split(";")[0] for warning in shown] == ["one.c is missing", "two.c is missing"]
    assert all("slower PyTorch" in str(warning.message) for warning in shown)
