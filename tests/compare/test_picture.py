"""The curves as a PNG."""

import pytest

from lm.compare import picture
from lm.compare.runs import Reader
from lm.compare.table import group
from tests.commands import compare
from tests.fake_runs import fake_run, run_of


@pytest.fixture
def drawn(monkeypatch):
    """What is given to lm.report.plot.save."""
    calls = []
    monkeypatch.setattr(picture, "save", lambda path, panels, title, **rest: calls.append((panels, title, rest)))
    return calls


def test_picture(tmp_path):
    for name in ("$x_{", "_hidden", "plain"):
        fake_run(tmp_path, name, rows=20, model={"width": 2 * len(name)})
    assert compare([str(tmp_path), "--png", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_two_panels_with_the_curves_of_every_seed(tmp_path, drawn):
    for seed in (1, 2):
        run_of(tmp_path, f"gru-s{seed}", {100: 2.0 + seed, 200: 1.5}, seed=seed)
    run_of(tmp_path, "none", {100: {"train/loss": 1.0}}, model={"width": 64})
    groups = group(Reader([str(tmp_path)]).read())
    picture.save_png("a.png", groups, groups, "val/loss", 1.6)
    (((steps, seconds), title, rest),) = drawn
    assert (steps.x, seconds.x, title, rest["target"]) == ("optimiser steps", "seconds of training", "", 1.6)
    assert steps.y == seconds.y == "validation loss, nats per character"
    assert steps.curves == {"gru x2": [[(100, 3.0), (200, 1.5)], [(100, 4.0), (200, 1.5)]]}
    assert seconds.curves == {"gru x2": [[(50, 3.0), (100, 1.5)], [(50, 4.0), (100, 1.5)]]}


@pytest.mark.parametrize(("x", "label"), [("step", "seconds of training"), ("flops", "floating-point operations")])
def test_the_axis_of_the_right_half(tmp_path, drawn, x, label):
    run_of(tmp_path, "gru-s1", {100: 2.0, 200: 1.5})
    assert compare([str(tmp_path), "--png", str(tmp_path / "a.png"), "--x", x]) == 0
    (((steps, right), _, _),) = drawn
    assert steps.x == "optimiser steps" and right.x.startswith(label)


def test_what_is_not_drawn_is_said(tmp_path, drawn):
    for width in range(30):
        run_of(tmp_path / "many", f"run-{width}", {100: 2.0}, model={"width": width})
    run_of(tmp_path / "none", "a", {100: {"train/loss": 1.0}})
    for name in ("many", "none"):
        groups = group(Reader([str(tmp_path / name)]).read())
        picture.save_png("a.png", groups, groups, "val/loss_streaming", None)
    assert [len(panels[0].curves) for panels, _, _ in drawn] == [0, 0]
    groups = group(Reader([str(tmp_path / "many")]).read())
    picture.save_png("a.png", groups, groups, "val/loss", None)
    assert [(len(panels[0].curves), title) for panels, title, _ in drawn[1:]] == [
        (0, "no val/loss_streaming yet"),
        (24, "24 of 30 groups"),
    ]


def test_the_right_half_may_be_of_other_runs(tmp_path, drawn):
    run_of(tmp_path / "steps", "gru-s1", {100: 2.0, 200: 1.5})
    run_of(tmp_path / "minutes", "gru-s1", {50: 2.5})
    argv = [str(tmp_path / "steps"), "--png", str(tmp_path / "a.png"), "--timed", str(tmp_path / "minutes")]
    assert compare(argv) == 0
    (((steps, seconds), _, _),) = drawn
    assert (steps.curves, seconds.curves) == ({"gru-s1": [[(100, 2.0), (200, 1.5)]]}, {"gru-s1": [[(25, 2.5)]]})


def test_losses_against_the_options_that_a_search_has_tried(tmp_path, drawn):
    tried = [("mingru", 0.1, 1.6, "finished"), ("mingru", 0.2, 1.5, "finished"), ("mingru", 0.3, 9.0, "pruned")]
    tried.append(("gru", 0.2, 1.7, "finished"))
    for number, (mixer, dropout, loss, status) in enumerate(tried):
        name = f"{mixer}-trial{number:03}"
        run_of(tmp_path, name, {100: loss}, mixer=mixer, status=status, model={"dropout": dropout})
    assert compare([str(tmp_path), "--png", "a.png"]) == 0
    (panel,) = drawn[0][2]["below"]
    assert (panel.x, panel.y, panel.log, panel.ticks) == ("model.dropout", "best val/loss", False, [0.1, 0.2, 0.3])
    assert panel.curves == {"gru": [[(0.2, 1.7)], []], "mingru": [[(0.1, 1.6), (0.2, 1.5)], [(0.3, 9.0)]]}
    assert panel.limits == pytest.approx((1.5 - 0.08 * 0.2, 1.7 + 0.08 * 0.2))
