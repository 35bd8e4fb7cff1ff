"""The progress bar: one line on a terminal, plain lines elsewhere."""

import io
import sys
from types import SimpleNamespace

import pytest

from lm.config.options import Config
from lm.training.progress import ProgressBar

LATEST = {"train/loss": 1.2345, "val/loss": 1.5, "chars_per_second": 54_321.0}


def parts(step=10, share=0.25, seconds=30.0, latest=LATEST, first=True):
    trainer = SimpleNamespace(global_step=step, is_global_zero=first)
    module = SimpleNamespace(clock=SimpleNamespace(progress=lambda step: share, seconds=seconds), config=Config())
    return ProgressBar(SimpleNamespace(latest=latest)), trainer, module


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("latest", "share", "text"),
    [
        ({}, 0.0, "step 10"),
        ({"train/loss": 1.2345}, 0.25, "step 10, loss 1.234, 1:30 left"),
        (LATEST, 0.25, "step 10, loss 1.234, val 1.500, 54.3k chars/s, 1:30 left"),
        ({"val/loss": 2.0, "val/accuracy": 0.5}, 0.5, "step 10, val 2.000, accuracy 50.0%, 0:30 left"),
        (LATEST, 1.0, "step 10, loss 1.234, val 1.500, 54.3k chars/s"),
    ],
)
def test_the_line_of_a_terminal(latest, share, text, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    bar, trainer, module = parts(share=share, latest=latest)
    bar.on_train_start(trainer, module)
    bar.on_train_batch_end(trainer, module)
    bar.on_train_end(trainer, module)
    last = screen.getvalue().removesuffix("\n").rpartition("\r")[2]
    assert last.startswith(f"{share:4.0%}") and last.rstrip().endswith(f" {text}")


def test_validation_shows_how_far_it_is_and_counts_in_the_time_left(monkeypatch):
    """A validation of 20 seconds every 250 steps: at step 500 of 2,000, after 60 seconds, 6 and the last remain."""
    times = iter([0.0, 100.0, 120.0])
    monkeypatch.setattr("lm.training.progress.time.monotonic", lambda: next(times))
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    bar, trainer, module = parts(step=500, share=0.25, seconds=60.0)
    trainer.num_val_batches = [4, 6]
    bar.on_train_start(trainer, module)
    bar.on_validation_start(trainer, module)
    bar.on_validation_batch_end(trainer, module, None, None, 1, 1)
    bar.bar.refresh()
    assert " 25%" in screen.getvalue() and "step 500, validation 60%" in screen.getvalue()
    bar.on_validation_end(trainer, module)
    bar.on_train_batch_end(trainer, module)
    bar.bar.refresh()
    assert screen.getvalue().rstrip().endswith("5:20 left")  # 180 s of training, 7 x 20 s


def test_a_file_gets_a_plain_line_every_ten_seconds(monkeypatch, capsys):
    times = iter([0.0, 5.0, 10.0, 10.0, 19.0, 20.0, 20.0])
    monkeypatch.setattr("lm.training.progress.time.monotonic", lambda: next(times))
    bar, trainer, module = parts()
    bar.on_train_start(trainer, module)
    for _ in range(4):  # at 5, 10, 19 and 20 seconds
        bar.on_train_batch_end(trainer, module)
    assert capsys.readouterr().err == 2 * " 25%  step 10, loss 1.234, val 1.500, 54.3k chars/s, 1:30 left\n"


def test_other_processes_print_nothing(monkeypatch, capsys):
    monkeypatch.setattr(ProgressBar, "PLAIN_EVERY", 0.0)
    bar, trainer, module = parts(first=False)
    bar.on_train_start(trainer, module)
    bar.on_train_batch_end(trainer, module)
    bar.on_exception(trainer, module, KeyboardInterrupt())
    assert capsys.readouterr().err == ""
