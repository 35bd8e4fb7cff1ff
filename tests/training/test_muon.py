"""Muon's orthogonalisation against singular values, its forms against each other."""

import pytest
import torch
from torch import Tensor

from lm.training import muon
from lm.training.muon import (
    POLYNOMIALS,
    gram_polynomial,
    newton_schulz,
    newton_schulz_gram,
    update_native,
    update_portable,
)

JORDAN = POLYNOMIALS["jordan5"]
INTERVALS = {"jordan5": (0.01, 0.68, 1.14), "polar5": (0.001, 0.85, 1.13), "polar4": (0.005, 0.89, 1.09)}
INTERVALS["polar3"] = (0.02, 0.89, 1.1)
"""The smallest singular value that each brings near one, beside 1, and how near."""


def orthogonalise(matrix: Tensor, name: str = "jordan5") -> Tensor:
    return muon.orthogonalise([matrix], POLYNOMIALS[name])[0]


def applied(polynomials: muon.Polynomials, s: float) -> float:
    for a, b, c in polynomials:
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_bring_singular_values_near_one(name):
    least, low, high = INTERVALS[name]
    values = [applied(POLYNOMIALS[name], least ** (i / 10000)) for i in range(10001)]
    assert low < min(values) and max(values) < high
    assert min(values) < low + 0.02 and max(values) > high - 0.03  # the table says no less than it could
    if name != "jordan5":  # values that rounding makes larger than one come back to the interval
        assert low < applied(POLYNOMIALS[name], 1.01) < high


@pytest.mark.parametrize("name", POLYNOMIALS)
@pytest.mark.parametrize("shape", [(8, 8), (64, 16), (16, 64)])
def test_orthogonalise_brings_singular_values_near_one(shape, name):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), name))
    assert values.min() > 0.6 and values.max() < 1.25


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_orthogonalise_applies_its_polynomials_to_each_singular_value(name):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, 5, dtype=torch.float64), full_matrices=False)
    before = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    after = [applied(POLYNOMIALS[name], s) for s in (before / before.norm()).tolist()]
    matrix = u @ torch.diag(before) @ v
    expected = (u @ torch.diag(torch.tensor(after).double()) @ v).float()
    for given, result in ((matrix, expected), (matrix.mT, expected.mT)):
        torch.testing.assert_close(orthogonalise(given, name), result, atol=1e-4, rtol=0)
        torch.testing.assert_close(orthogonalise(1000 * given.float(), name), result, atol=1e-4, rtol=0)


def test_orthogonalise_divides_by_the_norm_and_a_little():
    tiny = torch.zeros(2, 3)
    tiny[0, 0] = 1e-7
    assert orthogonalise(tiny)[0, 0].item() == pytest.approx(applied(JORDAN, 0.5), abs=1e-4)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_orthogonalise_computes_in_bfloat16_on_a_gpu(name):
    class OnGPU(torch.Tensor):
        is_cuda = property(lambda self: True)

    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(16, 48), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.2, 1, 16)) @ v
    result = orthogonalise(matrix.as_subclass(OnGPU), name).as_subclass(torch.Tensor)
    assert result.dtype == torch.bfloat16 and orthogonalise(matrix.bfloat16()).dtype == torch.float32
    want = orthogonalise(matrix, name)
    assert (result.float() - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("rank", [3, 40])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_gram_form_equals_the_plain_iteration(rank, steps):
    """To a few thousandths for matrices of low rank, where bfloat16 is wrong by a tenth; otherwise to four digits."""
    torch.manual_seed(0)
    x = torch.randn(40, rank) @ torch.randn(rank, 160)
    plain = newton_schulz([x], JORDAN[:steps], torch.float32)[0]
    torch.testing.assert_close(
        newton_schulz_gram([x], JORDAN[:steps])[0], plain, atol=5e-3 if rank < 40 else 2e-4, rtol=0
    )


def test_matrices_together_and_alone_are_the_same():
    """Whatever their shapes, sizes and order, and strides."""
    torch.manual_seed(0)
    shapes = [(8, 4), (4, 8), (5, 5), (4, 30), (30, 4), (1, 7), (5, 5)]
    matrices = [scale * torch.randn(shape) for scale, shape in enumerate(shapes, 1)] + [torch.randn(6, 3).mT]
    for matrix, together in zip(matrices, muon.orthogonalise(matrices, JORDAN), strict=True):
        assert together.shape == matrix.shape
        torch.testing.assert_close(together, orthogonalise(matrix), atol=1e-5, rtol=0)
    assert muon.orthogonalise([], JORDAN) == []


def test_polynomial_by_hand():
    """Diagonal matrices: each number goes its own way."""
    polynomials = [(3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5), (1.0, 0.5, -0.25)]
    values, expected = [0.5, 0.25, 0.0], []
    for g in values:
        factor = 1.0
        for a, b, c in polynomials:
            p = a + b * g + c * g * g
            factor, g = factor * p, p * g * p
        expected.append(factor)
    result = gram_polynomial(torch.diag(torch.tensor(values)).repeat(4, 1, 1), polynomials)
    torch.testing.assert_close(result[3].diagonal(), torch.tensor(expected))
    assert result[3].fill_diagonal_(0).abs().max() < 1e-6


SHAPES = [
    (5, 3),
    (3, 5),
    (40, 70),
    (70, 40),
    (1, 4),
    (4, 1),
    (16, 12),
    (31, 50),
    (33, 32),
    (130, 130),
    (128, 256),
    (300, 64),
]
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "beta2": 0.9, "polynomials": "polar4"}


def updated(form, beta2: float = 0.9, name: str = "polar4", steps: int = 3) -> list[list[Tensor]]:
    """Parameters, momenta and second moments after a few updates."""
    torch.manual_seed(0)
    parameters = [torch.randn(shape) for shape in SHAPES]
    momenta = [torch.zeros_like(p) for p in parameters]
    seconds = [torch.zeros(p.shape[0], 1) for p in parameters] if beta2 else []
    for _ in range(steps):
        options = OPTIONS | {"beta2": beta2, "polynomials": name}
        form(parameters, [torch.randn(shape) for shape in SHAPES], momenta, seconds, options)
    return [parameters, momenta, seconds]


@pytest.mark.parametrize("name", POLYNOMIALS)
@pytest.mark.parametrize("beta2", [0.0, 0.9])
def test_native_updates_are_those_of_torch(compiler, beta2, name):
    for got, want in zip(updated(update_native, beta2, name), updated(update_portable, beta2, name), strict=True):
        for p, q in zip(got, want, strict=True):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_native_updates_do_not_depend_on_the_number_of_threads(compiler, monkeypatch):
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append([x for kind in updated(update_native) for x in kind])
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))


def test_native_updates_of_zeros_and_of_what_is_not_a_number(compiler):
    p, zero = torch.ones(3, 2), torch.zeros(3, 2)
    update_native([p], [zero.clone()], [zero.clone()], [torch.zeros(3, 1)], OPTIONS)
    torch.testing.assert_close(p, torch.full((3, 2), 1 - 0.02 * 0.1))
    update_native([p], [zero / 0], [zero.clone()], [torch.zeros(3, 1)], OPTIONS)
    assert p.isnan().all()


def test_which_updates_are_native(compiler, monkeypatch):
    """Float32 on a CPU, with a matrix for every thread, none of them too large for one."""
    used = []
    for name in ("native", "portable"):
        monkeypatch.setattr(muon, f"update_{name}", lambda *_, name=name: used.append(name))

    def form(*parameters: Tensor) -> str:
        muon.update(list(parameters), list(parameters), list(parameters), [], OPTIONS | {"beta2": 0.0})
        return used.pop()

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    matrix = torch.ones(6, 4)
    assert form(matrix, matrix) == "native" and form(matrix) == "portable"
    for other in (matrix.double(), matrix.bfloat16(), matrix.T, matrix.to("meta")):
        assert form(matrix, other) == "portable"
    monkeypatch.setattr(muon, "LARGEST", 3)
    assert form(matrix, matrix) == "portable"
    monkeypatch.setattr(muon, "LARGEST", 4)
    assert form(matrix, matrix) == "native"
    monkeypatch.setenv("LM_BACKEND", "portable")
    assert form(matrix, matrix) == "portable"


def test_orthogonalise_keeps_the_singular_vectors():
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(12, 12))
    matrix = u @ torch.diag(torch.linspace(0.5, 1.0, 12)) @ v
    assert (u.T @ orthogonalise(matrix) @ v.T).fill_diagonal_(0).abs().max() < 1e-4


def test_orthogonalise_survives_zero_and_huge():
    assert orthogonalise(torch.zeros(4, 4)).abs().max() == 0
    assert orthogonalise(torch.full((4, 4), 1e18)).isfinite().all()


def test_each_matrix_of_a_batch_is_divided_by_its_own_norm():
    torch.manual_seed(0)
    batch = torch.randn(3, 8, 5) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    together = newton_schulz(batch, JORDAN)
    for matrix, result in zip(batch, together, strict=True):
        torch.testing.assert_close(newton_schulz(matrix[None], JORDAN)[0], result, rtol=1e-4, atol=1e-5)
