"""The memory pool of the native kernels."""

import pytest
import torch

from lm import recurrence
from lm.recurrence import cpu, reference

pytestmark = pytest.mark.usefixtures("compiler")
FLOAT = torch.float32
KIB = torch.Size((256,))
"""1 KiB of floats."""


def test_memory_is_used_again_once_nothing_refers_to_it():
    pool, shape = cpu.Pool(limit=1 << 20), torch.Size((4, 1024))
    first = pool.empty(FLOAT, shape)
    address, row = first.data_ptr(), first[0]
    del first
    assert pool.empty(FLOAT, shape).data_ptr() != address, "a view still needs it"
    del row
    addresses = {pool.empty(FLOAT, shape).data_ptr() for _ in range(8)}
    assert address in addresses and len(addresses) <= 2


def test_only_memory_of_the_same_size_is_used_again():
    pool = cpu.Pool(limit=1 << 20)
    address = pool.empty(FLOAT, KIB).data_ptr()
    assert pool.empty(FLOAT, torch.Size((255,))).data_ptr() != address
    assert pool.empty(torch.bfloat16, torch.Size((512,))).data_ptr() == address


def test_idle_memory_is_bounded():
    """The limit is 10 KiB; of 12 blocks of 1 KiB that are given back, the last ten stay."""
    pool = cpu.Pool(limit=10 << 10)
    kept = [pool.empty(FLOAT, KIB) for _ in range(12)]
    addresses = [block.data_ptr() for block in kept]
    assert not pool.idle
    while kept:
        del kept[0]
    assert [block.data_ptr() for block in pool.idle] == addresses[2:]


class Interrupting:
    """An idle block of 1,200 bytes. Each time its size is read, one of the tensors is freed: finalisers can run
    between any two instructions."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors

    @property
    def nbytes(self) -> int:
        if self.tensors:
            self.tensors.pop()
        return 1200


def test_a_tensor_freed_during_a_search_changes_nothing():
    """The limit holds two blocks of about this size: whatever is freed would drop the others, and move the rest."""
    pool = cpu.Pool(limit=2250)
    kept = [pool.empty(FLOAT, torch.Size((260,))) for _ in range(8)]
    pool.empty(FLOAT, KIB)  # and free it at once
    block = Interrupting(kept)
    pool.idle.append(block)
    assert pool._take(1200) is block


def test_memory_saved_for_backward_is_not_used_again(monkeypatch):
    """Two scans larger than LARGE, alive at once: each has its own outputs and gradients."""
    monkeypatch.setattr(cpu, "LARGE", 1)
    projections = [torch.randn(2, 64, 48, requires_grad=True) for _ in range(2)]
    wanted = [torch.autograd.grad(reference.mingru_scan(p)[0].square().sum(), p)[0] for p in projections]
    scans = [recurrence.mingru_scan(p)[0].square().sum() for p in projections]
    for scan, projection, want in zip(scans, projections, wanted, strict=True):
        torch.testing.assert_close(torch.autograd.grad(scan, projection)[0], want, rtol=1e-4, atol=1e-5)
