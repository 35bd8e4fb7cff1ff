"""packed.c as a WebAssembly module: `make wasm` writes packed.wasm anew, with clang and lld.

The module has no imports. It exports `trace` of packed.c and its memory, whose first bytes are its stack; a model and
its working memory go to `BASE` and above.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lm.files import UserError, atomic_write
from lm.native.build import HEADERS

MODULE = Path(__file__).with_name("packed.wasm")
SOURCE = Path(__file__).parents[1] / "packed.c"
BASE = 1 << 16
"""The first address that the module itself does not use: its stack and data end at `__heap_base`, not above."""
FLAGS = (
    "--target=wasm32 -nostdlib -ffreestanding -msimd128 -mbulk-memory "
    "-std=gnu11 -O3 -fno-math-errno -fno-trapping-math -fopenmp-simd "
    "-Wl,--no-entry,--export=trace,--export=__heap_base,--stack-first,-z,stack-size=32768,--strip-debug"
).split()


def build(path: Path) -> None:
    """Compile the module into a file.

    Raises:
        UserError: clang or lld is missing, or fails.
    """
    missing = [name for name in ("clang", "wasm-ld") if not shutil.which(name)]
    if missing:
        raise UserError(f"{' and '.join(missing)} not found: apt-get install clang lld")
    with tempfile.TemporaryDirectory(prefix="char-lm-") as folder:
        output = Path(folder, path.name)
        command = ["clang", *FLAGS, f"-I{HEADERS}", str(SOURCE), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"clang cannot build {path.name}: {done.stderr.strip()}")
        atomic_write(path, output.read_bytes())


if __name__ == "__main__":
    try:
        build(MODULE)
    except UserError as problem:
        sys.exit(str(problem))
