"""`char-lm bench busy` at tiny sizes."""


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_busy(bench):
    result, out = bench("busy", "--cells", "mingru")
    rows = by_name(result["results"][0]["rows"])
    assert rows["ours, portable"]["ratio"] > 0 and len(rows["ours, portable"]["busy"]) == 2
    assert "one core busy" in out
