"""`char-lm bench overhead` at tiny sizes."""

import pytest


@pytest.mark.slow
def test_overhead(bench):
    result, out = bench("overhead", "--steps", "4", "--repeat", "1")
    assert set(result) == {"bare", "train.py", "ratio"} and "train.py / bare loop" in out
