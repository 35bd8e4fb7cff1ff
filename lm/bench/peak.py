"""Limits of arithmetic on this machine: torch's product of large matrices, and the processor's multiply-adds.

The second is measured by a loop in C on values that stay in registers, with as many threads as torch uses. It counts
the vector instructions of this processor: bfloat16 means AVX512_BF16, and the matrix units of some processors (AMX)
can be faster than that.
"""

from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_double, c_float, c_int, c_int64
from functools import partial
from pathlib import Path

import torch

from lm.bench import measure
from lm.native.build import BuildError, Library

ROUNDS = 1_000_000
"""Multiply-adds of each sum in one call: some milliseconds."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The numbers of the types in kernel.h."""

library = Library(Path(__file__).with_name("peak.c"), multiply_adds=(c_double, c_int, c_int64, c_int, POINTER(c_float)))


def multiply_adds(dtype: torch.dtype, rounds: int = ROUNDS) -> float | None:
    """Compute multiply-adds on all threads of torch; bfloat16 products are added to float32.

    Returns:
        The number of floating-point operations, two for each multiply-add; None if the processor has no instruction for
        the type, or there is no compiler or no such number of threads.
    """
    if dtype not in TYPES:
        return None
    try:
        loaded = library()
    except BuildError:
        return None
    return loaded.multiply_adds(TYPES[dtype], rounds, torch.get_num_threads(), byref(c_float())) or None


class Limits:
    """The limits of a type of numbers, to be timed in turns with what is compared with them.

    Args:
        n: size of the square matrices that torch multiplies, 2 n^3 operations.
        dtype: of the matrices and of the multiply-adds.
        device: only a CPU has a peak.
    """

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n = n
        self.calls: dict[str, measure.Call] = {"sgemm": measure.gemm_call(n, dtype, device)}
        self.flops = {"sgemm": 2.0 * n**3}
        count = multiply_adds(dtype) if device.type == "cpu" else None
        if count is not None:
            self.calls["peak"], self.flops["peak"] = partial(multiply_adds, dtype), count

    def rates(self, times: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """FLOP/s of each limit, from the seconds of its calls."""
        return {name: flops / measure.median(times[name]) for name, flops in self.flops.items()}

    def shares(self, flops_per_second: float, times: Mapping[str, Sequence[float]]) -> measure.Row:
        """FLOP/s as a share of each limit: `of_sgemm`, and `of_peak`, which is None where there is no peak."""
        rates = self.rates(times)
        return {f"of_{name}": flops_per_second / rates[name] if name in rates else None for name in ("sgemm", "peak")}

    def columns(self, times: Mapping[str, Sequence[float]]) -> measure.Row:
        """FLOP/s of each limit for the JSON: `sgemm_flops_per_second`, `peak_flops_per_second`."""
        rates = self.rates(times)
        return {f"{name}_flops_per_second": rates.get(name) for name in ("sgemm", "peak")}

    def describe(self, times: Mapping[str, Sequence[float]]) -> str:
        """The limits in words, with the time of the product."""
        rates = self.rates(times)
        product = f"{measure.spread(times['sgemm'])} ms = {1e-9 * rates['sgemm']:,.1f} GFLOP/s"
        peak = f"; peak {1e-9 * rates['peak']:,.1f} GFLOP/s" if "peak" in rates else ""
        return f"a {self.n} x {self.n} matrix product takes {product}{peak}"
