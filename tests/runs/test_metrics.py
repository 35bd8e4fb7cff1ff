"""metrics.csv, written and read, letter by letter."""

import pytest

from lm.runs.metrics import HEADER, format_row, read_rows

GOOD = HEADER + "10,5120,0.5,1e+09,2.5,,,,,,,,\n20,10240,1,2e+09,,2,1.75,2.88539,7.38906,,,,0.5\n"


def test_the_header_names_the_columns_in_their_order():
    assert HEADER == (
        "step,chars,train_seconds,flops,train/loss,val/loss,val/loss_streaming,val/bpc,val/perplexity,lr,grad_norm,"
        "chars_per_second,val/accuracy\n"
    )


def test_a_row_has_whole_numbers_in_full_and_others_in_six_digits():
    row = {"step": 1234567, "chars": 12345678901, "train_seconds": 1.23456789, "flops": 1.5e20, "val/loss": 2 / 3}
    assert format_row(row) == "1234567,12345678901,1.23457,1.5e+20,,0.666667,,,,,,,\n"
    assert format_row({"val/accuracy": 0.5, "lr": 1e-5, "unknown": 3}) == ",,,,,,,,,1e-05,,,0.5\n"


def test_rows_are_read_as_numbers_without_empty_cells():
    assert read_rows(GOOD) == (
        [
            {"step": 10, "chars": 5120, "train_seconds": 0.5, "flops": 1e9, "train/loss": 2.5},
            {
                "step": 20, "chars": 10240, "train_seconds": 1, "flops": 2e9, "val/loss": 2, "val/loss_streaming": 1.75,
                "val/bpc": 2.88539, "val/perplexity": 7.38906, "val/accuracy": 0.5,
            },
        ],
        [],
    )  # fmt: skip
    assert read_rows("") == ([], []) and read_rows(HEADER) == ([], [])


AXES = "step,chars,train_seconds,flops,train/loss,val/loss,val/loss_streaming\n"
DAMAGED = {
    "1,1,1,1,3,,\n2,2,2,2,2": ([1], []),  # still being written
    "1,1,1,1,3,,\nnonsense\n2,2,2,2,2,,\n": ([1, 2], ["1 damaged rows of metrics.csv left out"]),
    "1,1,1\n1,1,1,1,1,1,1,1\n\n2,2,2,2,2,,\n": ([2], ["3 damaged rows of metrics.csv left out"]),
    "30,1,1,1,3,,\n5,1,1,1,2,,\n20,1,1,1,2,,\n": ([5, 20, 30], []),
    "1,1,1,1,3,,\nnan,1,1,1,2,,\n,1,1,1,2,,\ninf,1,1,1,2,,\n": ([1], []),
    "1,1,1,1,3,,\n2,1,1,1,nan,,\n3,1,1,1,inf,-inf,\n4,1,1,1,,,nan\n": (
        [1, 2, 3, 4],
        ["train/loss is nan at step 2", "val/loss is -inf at step 3", "val/loss_streaming is nan at step 4"],
    ),
}


@pytest.mark.parametrize("body", DAMAGED)
def test_damaged_files_give_what_is_whole_and_say_what_is_not(body):
    steps, problems = DAMAGED[body]
    rows, said = read_rows(AXES + body)
    assert ([row["step"] for row in rows], said) == (steps, problems)


def test_missing_columns_are_named():
    rows, problems = read_rows("step, chars\n1,2\n")
    assert rows == [{"step": 1, "chars": 2}]
    assert problems == ["metrics.csv lacks train_seconds, flops"]
    assert read_rows("chars,train/loss\n1,2\n") == ([], ["metrics.csv lacks step, train_seconds, flops"])
