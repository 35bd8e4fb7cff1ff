"""The processor's multiply-adds, and shares of the limits."""

import ctypes
import platform

import pytest
import torch

from lm.bench import measure, peak
from lm.native.build import BuildError, Library

CPU = torch.device("cpu")


def fresh_library() -> Library:
    """The library, not loaded yet."""
    return Library(peak.library.source, **peak.library.functions)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_round_is_computed(compiler, threads):
    """After many rounds of x -> 0.999 x + 0.001 each of the sums is 1, and a round has two operations for each sum."""
    total, rounds = ctypes.c_float(), 30_000
    count = peak.library().multiply_adds(0, rounds, threads, total)
    assert count and total.value == pytest.approx(count / (2 * rounds), rel=1e-3)
    assert count == threads * peak.library().multiply_adds(0, rounds, 1, total)


def test_every_round_of_bfloat16_is_computed(compiler):
    """Sums 0 ... 23 of 16 lanes, to each of which a round adds two products 2^-7 * 2^-7: four operations."""
    total, rounds = ctypes.c_float(), 1024
    count = peak.library().multiply_adds(1, rounds, 1, total)
    if not count:
        pytest.skip("this processor has no such instruction")
    assert count == 4 * 24 * 16 * rounds and total.value == 16 * (276 + 24 * rounds * 2**-13)


def test_threads_are_those_of_torch(compiler, monkeypatch):
    counts = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        counts.append(peak.multiply_adds(torch.float32, 1000))
    assert counts[0] and counts[1] == 3 * counts[0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86")
def test_older_processors_have_float32_only(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts = []
    for flags in ("-mno-avx512f", "-mno-avx"):
        monkeypatch.setenv("CC", f"gcc {flags}")
        monkeypatch.setattr(peak, "library", fresh_library())
        assert peak.multiply_adds(torch.bfloat16) is None
        counts.append(peak.multiply_adds(torch.float32, 1000))
    threads = torch.get_num_threads()
    assert counts == [2 * lanes * 12 * 1000 * threads for lanes in (8, 4)]


def test_types_without_an_instruction_have_no_peak():
    assert peak.multiply_adds(torch.float16) is None


def test_without_a_compiler_there_is_no_peak(monkeypatch):
    def refuse():
        raise BuildError("no compiler")

    monkeypatch.setattr(peak, "library", refuse)
    limits = peak.Limits(8, torch.float32, CPU)
    times = measure.in_turns(limits.calls, 1, CPU)
    assert peak.multiply_adds(torch.float32) is None and list(times) == ["sgemm"]
    assert limits.shares(1e9, times)["of_peak"] is None and "peak" not in limits.describe(times)
    assert limits.columns(times)["peak_flops_per_second"] is None


def test_shares(monkeypatch):
    """A product of 8 x 8 matrices, 1024 operations, takes 2 s; 6000 operations take 3 s."""
    monkeypatch.setattr(peak, "multiply_adds", lambda dtype: 6000.0)
    limits = peak.Limits(8, torch.float32, CPU)
    times = {"sgemm": [1.0, 2.0, 9.0], "peak": [3.0]}
    assert limits.rates(times) == {"sgemm": 512, "peak": 2000}
    assert limits.shares(1000.0, times) == {"of_sgemm": 1000 / 512, "of_peak": 0.5}
    assert limits.columns(times) == {"sgemm_flops_per_second": 512, "peak_flops_per_second": 2000}


def test_limits_in_words(monkeypatch):
    monkeypatch.setattr(peak, "multiply_adds", lambda dtype: 3e9)
    limits = peak.Limits(1000, torch.float32, CPU)
    words = limits.describe({"sgemm": [0.2], "peak": [0.1]})
    assert words == "a 1000 x 1000 matrix product takes 200.0 [200.0-200.0] ms = 10.0 GFLOP/s; peak 30.0 GFLOP/s"
