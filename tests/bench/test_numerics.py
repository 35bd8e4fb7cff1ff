"""`char-lm bench numerics` at tiny sizes."""

from lm.bench import numerics


def test_numerics(bench, tmp_path):
    picture = tmp_path / "numerics.png"
    result, out = bench("numerics", "--plot", str(picture))
    ours = [row for row in result["results"] if row["name"] == "ours, portable"]
    assert {(row["cell"], row["T"]) for row in ours} == {(c, T) for c in ("mingru", "minlstm") for T in (64, 128)}
    assert max(row[part] for row in ours for part in numerics.PARTS) < 1e-6
    assert "log-space" in out and picture.read_bytes().startswith(b"\x89PNG")


def test_numerics_refuses_what_differs(bench, monkeypatch):
    right = numerics.reference.mingru_log_space
    monkeypatch.setattr(numerics.reference, "mingru_log_space", lambda projection, h0: 1.01 * right(projection, h0))
    result, out = bench("numerics", "--cells", "mingru")
    assert [row["name"] for row in result["skipped"]] == ["log-space"] and "values off by" in out
    assert "log-space" not in {row["name"] for row in result["results"]}
