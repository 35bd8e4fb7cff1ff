"""The page without a browser: nothing in it is markup of a run's, and it asks the network for nothing."""

import base64
import json

from lm.compare.page import encode, payload, render
from lm.compare.runs import RunData, Sample
from lm.runs.metrics import AXES, VALUES
from tests.commands import compare
from tests.fake_runs import fake_run

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
    assert len(whole["samples"]) == 500 and len(thinned["samples"]) <= 10
    assert [thinned["samples"][i][0] for i in (0, -1)] == [0, 499]


def unpack(text: str) -> list[float]:
    return list(memoryview(base64.b64decode(text)).cast("f"))
