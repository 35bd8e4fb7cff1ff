"""Native code: a C file of ours, compiled on first use with the system's compiler and never at import.

The library is kept in the user's cache folder under a hash of everything that its machine code depends on.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lm.files import cache_folder

HEADERS = Path(__file__).parent


class BuildError(RuntimeError):
    """Native code cannot be had on this machine."""


def build(source: Path) -> ctypes.CDLL:
    """The compiled C file, from the cache or built now (about a second); safe when several processes do it at once.

    Raises:
        BuildError: there is no compiler, or it fails; says why.
    """
    try:
        return _build(source)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{source.name} cannot be built: {error}") from error


def _build(source: Path) -> ctypes.CDLL:
    compiler, folder = _compiler(), _cache_folder()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    texts = [path.read_text() for path in (source, *sorted(HEADERS.glob("*.h")))]
    problem = ""
    for flags in _flag_sets(source):
        key = repr((texts, compiler, version, flags, _cpu()))
        path = folder / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
        try:
            if not path.exists():
                _compile([*compiler, *flags], path)
            return ctypes.CDLL(str(path))
        except (BuildError, OSError) as error:
            problem = problem or str(error)
    raise BuildError(problem)


def _compiler() -> list[str]:
    """The C compiler's command: $CC, else the first that is installed."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C compiler (cc, gcc or clang) was found")


def _flag_sets(source: Path) -> Iterator[list[str]]:
    """What to compile with, best first."""
    # Contraction and no traps are what vectorising needs; nothing may reorder sums, the exponential relies on it.
    common = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    common.append(f"-I{HEADERS}")
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    for openmp in _openmp_flags():
        yield [*common, native, str(source), *openmp]
    yield [*common, "-fopenmp-simd", str(source)]


def _openmp_flags() -> Iterator[list[str]]:
    """Two OpenMP runtimes in one process fight for the cores, so the one that torch has loaded comes first."""
    if sys.platform == "darwin":
        yield ["-Xclang", "-fopenmp", "-undefined", "dynamic_lookup"]
    elif loaded := re.search(r"/\S*/lib(gomp|iomp5|omp)\b\S*\.so\S*", _text("/proc/self/maps")):
        yield ["-fopenmp", "-Wl,--as-needed", loaded[0]]
    yield ["-fopenmp"]
    yield ["-fopenmp-simd"]


def _cpu() -> str:
    """What -march=native depends on."""
    described = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", _text("/proc/cpuinfo"), re.MULTILINE)
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(described))])


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cache_folder() -> Path:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="char-lm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


def _compile(command: list[str], path: Path) -> None:
    """Compile under a name of our own and rename: whoever else builds the same file never sees half of it."""
    for left in path.parent.glob("*.part"):  # by one that was killed
        with suppress(OSError):  # another process may rename or remove it at this moment
            if time.time() - left.stat().st_mtime > 600:
                left.unlink()
    handle, name = tempfile.mkstemp(suffix=".part", dir=path.parent)
    try:
        done = subprocess.run([*command, "-o", name], capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)
