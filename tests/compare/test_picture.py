"""The curves as a PNG."""

from tests.commands import compare
from tests.fake_runs import fake_run


def test_picture(tmp_path):
    for name in ("$x_{", "_hidden", "plain"):
        fake_run(tmp_path, name, rows=20, model={"width": 2 * len(name)})
    assert compare([str(tmp_path), "--png", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
