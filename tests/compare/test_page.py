"""The page without a browser: nothing in it is markup of a run's, and it asks the network for nothing."""

import base64
import json
import math

from lm.compare.page import encode, payload, render
from lm.compare.runs import Reader, RunData, Sample, read_run
from lm.runs.metrics import AXES, VALUES
from tests.commands import compare
from tests.fake_runs import fake_run, run_of

HOSTILE = "<img src=x onerror=alert(1)>&lt;"


def test_the_page_holds_nothing_of_a_run_as_markup(tmp_path, capsys):
    name = "<script>alert(1)"
    fake_run(tmp_path, name, text=f"</script>{HOSTILE}<!--", data={"corpus": HOSTILE})
    fake_run(tmp_path, "b", mixer=HOSTILE)
    assert compare([str(tmp_path), "--html", str(tmp_path / "a.html")]) == 0
    page = (tmp_path / "a.html").read_text()
    assert HOSTILE not in page and name not in page
    data = page.partition('<script id="data" type="application/json">')[2].partition("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["runs"][0]["samples"][0][1].endswith(f"</script>{HOSTILE}<!--")


def test_the_page_asks_the_network_for_nothing(tmp_path):
    page = render(payload([], "val/loss", None, []) | {"runs": []})
    head = page.partition("<style>")[0]
    assert "default-src 'none'" in head and "connect-src 'none'" in head and "unsafe-eval" not in head
    assert "<script src" not in page and '<link rel="stylesheet' not in page


def test_long_runs_and_long_samples_are_thinned_for_the_page(tmp_path):
    rows = [dict.fromkeys(AXES + VALUES, float(i)) for i in range(10_000)]
    run = RunData(tmp_path, "a", rows=rows, samples=[Sample(step, "x" * 4000) for step in range(500)])
    whole, thinned = encode(run, 1), encode(run, 100)
    assert unpack(whole["train"]["step"]) == list(range(10_000))
    steps, losses = unpack(thinned["train"]["step"]), unpack(thinned["train"]["train/loss"])
    assert len(steps) == 1000 and steps[-1] == 9999
    assert losses[0] == sum(range(10)) / 10 and steps[0] == 9
    assert len(unpack(encode(run, 10**6)["train"]["step"])) == 200
    assert len(whole["samples"]) == 500 and len(thinned["samples"]) <= 10
    assert [thinned["samples"][i][0] for i in (0, -1)] == [0, 499]


def test_differences_are_in_the_order_of_the_runs(tmp_path):
    """The seeds of a group need not be read one after the other."""
    for name, seed, width in (("a", 1, 32), ("b", 1, 64), ("c", 2, 32)):
        run_of(tmp_path, name, {10: 2.0}, seed=seed, model={"width": width})
    data = payload(Reader([str(tmp_path)]).read(), "val/loss", None, [])
    assert [path.rpartition("/")[2] for path in data["order"]] == ["a", "b", "c"]
    assert dict(data["differences"]) == {"model.width": ["32", "64", "32"], "seed": ["1", "1", "2"]}
    assert [[path.rpartition("/")[2] for path in group["runs"]] for group in data["groups"]] == [["a", "c"], ["b"]]


def test_training_and_validation_are_packed_apart(tmp_path):
    rows = {10: {"train/loss": 2.5, "lr": 0.5}, 20: {"val/loss": 2.0, "val/bpc": 2.9}, 30: {"train/loss": 1.5}}
    page = encode(read_run(run_of(tmp_path, "a", rows)), 1)
    assert [unpack(page["train"][name]) for name in ("step", "train_seconds", "train/loss")] == [
        [10, 30],
        [5, 15],
        [2.5, 1.5],
    ]
    assert unpack(page["train"]["lr"])[0] == 0.5 and math.isnan(unpack(page["train"]["lr"])[1])
    assert [unpack(page["val"][name]) for name in ("step", "chars", "val/loss")] == [[20], [2000], [2.0]]
    assert page["val/loss"] == 2.0 and page["parameters"] == 706_000 and page["best_step"] == 20


def unpack(text: str) -> list[float]:
    return list(memoryview(base64.b64decode(text)).cast("f"))
