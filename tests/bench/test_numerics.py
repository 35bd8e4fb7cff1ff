"""`char-lm bench numerics` at tiny sizes."""

import torch

from lm.bench import numerics, options


def test_numerics(bench, tmp_path):
    picture = tmp_path / "numerics.png"
    result, out = bench("numerics", "--plot", str(picture))
    ours = [row for row in result["results"] if row["name"] == "ours, portable"]
    assert {(row["cell"], row["T"]) for row in ours} == {(c, T) for c in ("mingru", "minlstm") for T in (64, 128)}
    assert max(row[part] for row in ours for part in numerics.PARTS) < 1e-6
    assert result["skipped"] == [] and {"ours, portable", "log-space"} <= {row["name"] for row in result["results"]}
    assert "log-space" in out and picture.read_bytes().startswith(b"\x89PNG")


def test_numerics_refuses_what_differs(bench, monkeypatch):
    right = numerics.LOG_SPACE["mingru"]
    monkeypatch.setitem(numerics.LOG_SPACE, "mingru", lambda projection, h0: 1.01 * right(projection, h0))
    result, out = bench("numerics", "--cells", "mingru")
    assert [row["name"] for row in result["skipped"]] == ["log-space"] and "values off by" in out
    assert "log-space" not in {row["name"] for row in result["results"]}


def test_errors_are_relative_and_against_float64(bench):
    """The same by a loop over float64 and over float32, in numbers of this test."""
    result, _ = bench("numerics", "--cells", "mingru", "--lengths", "64")
    arguments = options.Numerics(device="cpu", width=8)
    grad_h, projection, h0 = numerics.make_inputs("mingru", 64, arguments)
    found = []
    for dtype in (torch.float64, torch.float32):
        p, start = (x.detach().to(dtype).requires_grad_() for x in (projection, h0))
        h, k, c = [start], *p.chunk(2, dim=-1)
        candidate = torch.where(c >= 0, c + 0.5, torch.sigmoid(c))
        for t in range(64):
            z = torch.sigmoid(k[:, t])
            h.append((1 - z) * h[-1] + z * candidate[:, t])
        values = torch.stack(h[1:], dim=1)
        found.append([values.detach(), *torch.autograd.grad(values, (p, start), grad_h.to(dtype))])
    row = next(row for row in result["results"] if row["name"] == "ours, portable")
    for part, exact, rounded in zip(numerics.PARTS, *found, strict=True):
        error = ((rounded.double() - exact).norm() / exact.norm()).item()
        assert 0.1 * error < row[part] < 10 * error  # another order of the same roundings
