"""The environment of a run: versions, processor, memory."""

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "torchmetrics", "tokenizers", "datasets", "wandb", "numpy")


def environment(corpus: str) -> dict[str, Any]:
    """What a result may depend on: versions, processor, cores, the command, the checksum of the text."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": sys.argv,
        "corpus": corpus,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


def processor_name() -> str:
    """The model of the processor, such as "AMD EPYC 7R13"; of an unknown one the architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_bytes() -> int | None:
    """Largest resident memory of this process so far, in bytes; None if the system does not report it."""
    with suppress(OSError, IndexError):  # on Linux, ru_maxrss begins with that of the parent process
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def peak_memory() -> dict[str, float]:
    """Entries of summary.json: `peak_bytes` in MB, and on a GPU the largest memory of its tensors."""
    import torch

    peak, result = peak_bytes(), {}
    if peak is not None:
        result["peak_memory_mb"] = round(peak / 2**20, 1)
    if torch.cuda.is_available():
        result["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return result
