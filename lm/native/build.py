"""Native kernels: C files that are compiled with the system's compiler on first use, never at import.

Compiled libraries are kept in the user's cache folder under a hash of everything that their machine code depends on.
"""

import atexit
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lm.files import UserError, atomic_write, cache_folder, remove_leftovers

HEADERS = Path(__file__).parent
OPENMP = re.compile(r"/\S*/lib(gomp|iomp5|omp)\b\S*\.so\S*")
_LOCKS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
"""Held while a file is compiled, so that `Library` waits for `build_ahead`."""


class BuildError(RuntimeError):
    """Native kernels cannot be compiled on this machine."""


class Library:
    """A C file, compiled and loaded at the first call.

    Args:
        source: the C file.
        functions: for each function its result type, followed by the types of its arguments.
    """

    def __init__(self, source: Path, **functions: tuple[Any, ...]) -> None:
        self.source, self.functions = source, functions

    def __call__(self) -> ctypes.CDLL:
        """The loaded library. Compiling takes about a second and is tried once per process.

        Raises:
            BuildError: there is no compiler, or it fails; says why, at every call.
        """
        if isinstance(self._loaded, str):
            raise BuildError(self._loaded)
        return self._loaded

    @functools.cached_property
    def _loaded(self) -> ctypes.CDLL | str:
        """The library, or why it cannot be had."""
        try:
            loaded = _build(self.source)
        except (BuildError, OSError, UserError, subprocess.SubprocessError) as error:
            return f"{self.source.name} cannot be compiled: {error}"
        for name, (result, *arguments) in self.functions.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        return loaded


@functools.cache
def warn_once(problem: str) -> None:
    """Warn that a slower implementation is used; each problem is shown once per process."""
    warnings.warn(f"{problem}; using the slower PyTorch implementation", RuntimeWarning, stacklevel=3)


def build_ahead(*sources: Path) -> None:
    """Begin to compile files while the caller goes on, for instance with importing torch. A `Library` that is called
    meanwhile waits for its own; it also reports the errors, as it tries again.
    """
    for source in sources:
        threading.Thread(target=_try_to_build, args=(source,)).start()


def _try_to_build(source: Path) -> None:
    with suppress(BuildError, OSError, UserError, subprocess.SubprocessError):
        _compiled(source, next(_flag_sets(source)))


def _build(source: Path) -> ctypes.CDLL:
    """Load the compiled file from the cache, or compile it now; safe when several processes do it at once."""
    problem = ""
    for flags in _flag_sets(source):
        try:
            return ctypes.CDLL(str(_compiled(source, flags)))
        except (BuildError, OSError) as error:
            problem = problem or str(error)
    raise BuildError(problem)


def _compiled(source: Path, flags: list[str]) -> Path:
    """The compiled file in the cache, made if it is not there."""
    compiler, folder = _compiler(), _cache_folder()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    texts = [path.read_text() for path in (source, *sorted(HEADERS.glob("*.h")))]
    key = repr((texts, compiler, version, flags, _cpu()))
    path = folder / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    with _LOCKS[source]:
        if not path.exists():
            _compile([*compiler, *flags], path)
    return path


def _compiler() -> list[str]:
    """The C compiler's command: $CC, else the first that is installed."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C compiler (cc, gcc or clang) was found")


def _flag_sets(source: Path) -> Iterator[list[str]]:
    """Compiler flags to try, best first."""
    # Vectorising needs contraction and no traps. Nothing may reorder sums: the exponential relies on their order.
    common = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    common.append(f"-I{HEADERS}")
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    for openmp in _openmp_flags():
        yield [*common, native, str(source), *openmp]
    yield [*common, "-fopenmp-simd", str(source)]


def _openmp_flags() -> Iterator[list[str]]:
    """Two OpenMP runtimes in one process compete for the cores, so the one that torch has loaded comes first."""
    if sys.platform == "darwin":
        yield ["-Xclang", "-fopenmp", "-undefined", "dynamic_lookup"]
    elif runtime := _openmp_runtime():
        yield ["-fopenmp", "-Wl,--as-needed", runtime]
    yield ["-fopenmp"]
    yield ["-fopenmp-simd"]


def _openmp_runtime() -> str:
    """The runtime that torch has loaded or, before it is imported, the one that its package has; empty if unknown."""
    if loaded := OPENMP.search(_text("/proc/self/maps")):
        return loaded[0]
    torch = importlib.util.find_spec("torch")
    folder = Path(torch.origin).parent / "lib" if torch and torch.origin else HEADERS
    return next((os.path.realpath(path) for path in sorted(folder.glob("lib*omp*")) if OPENMP.match(str(path))), "")


def _cpu() -> str:
    """A description of the processor: what -march=native depends on."""
    lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", _text("/proc/cpuinfo"), re.MULTILINE)
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(lines))])


def _text(path: str) -> str:
    """The content of a file of the system, empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cache_folder() -> Path:
    """The user's cache folder, or a temporary one where that cannot be written."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError:
        return _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="char-lm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(command: list[str], path: Path) -> None:
    remove_leftovers(path.parent)
    with tempfile.TemporaryDirectory(prefix="char-lm-") as folder:
        output = Path(folder, path.name)
        done = subprocess.run([*command, "-o", output], capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
        atomic_write(path, output.read_bytes())
