"""`char-lm bench busy` at tiny sizes."""

from tests.bench.conftest import by_name


def test_busy(bench):
    result, out = bench("busy", "--cells", "mingru")
    rows = by_name(result["results"][0]["rows"])
    assert rows["ours, portable"]["ratio"] > 0 and len(rows["ours, portable"]["busy"]) == 2
    assert "one core busy" in out


def test_ratio(bench, timings):
    timings({"ours, portable": [1.0, 3.0, 2.0]})
    result, _ = bench("busy", "--cells", "mingru")
    row = by_name(result["results"][0]["rows"])["ours, portable"]
    assert row["alone"] == row["busy"] == [1.0, 3.0, 2.0] and row["ratio"] == 1
