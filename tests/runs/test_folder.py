"""The run folder: made, found, locked, cut back to a checkpoint, and read."""

import json
import os
from pathlib import Path

import pytest

from lm.config.resolve import parse
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError
from lm.runs.checkpoint import CheckpointInfo
from lm.runs.folder import Run
from lm.runs.load import locate
from lm.runs.metrics import HEADER

CONFIG, TOKENIZER = parse(["--name", "a"]), CharTokenizer("abc")


@pytest.fixture
def run(tmp_path):
    """A run that has been started."""
    run = Run(tmp_path / "a")
    run.start(CONFIG, TOKENIZER, "digest")
    yield run
    run.unlock()


def test_a_new_folder(run):
    assert {path.name for path in run.path.iterdir()} == {
        *(".lock", "checkpoints", "config.yaml", "environment.json"),
        *("metrics.csv", "samples.jsonl", "summary.json", "tokenizer.json"),
    }
    assert run.config() == CONFIG and run.tokenizer().characters == "abc"
    assert run.summary() == {"status": "running"} and run.corpus_digest() == "digest" and run.exists
    assert (run.path / "metrics.csv").read_text() == HEADER and (run.path / "samples.jsonl").read_text() == ""
    assert run.newest_checkpoint() is None and run.losses_at(1) == {}
    run.unlock()
    with pytest.raises(UserError, match="exists already"):
        run.start(CONFIG, TOKENIZER)


def test_a_run_exists_where_there_are_visible_files(tmp_path):
    run = Run(tmp_path / "a")
    assert not run.exists
    run.path.mkdir()
    (run.path / ".lock").touch()
    assert not run.exists
    (run.path / "x").touch()
    assert run.exists
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert Run(tmp_path / "file").exists and Run(tmp_path / "link").exists


def test_one_process_at_a_time(run):
    other = Run(run.path)
    with pytest.raises(UserError, match=f"is being trained by process {os.getpid()} of .*; stop that first"):
        other.lock()
    run.lock()  # has it already
    assert not other.is_abandoned
    run.unlock()
    assert other.is_abandoned
    other.lock()
    other.unlock()
    (run.path / ".lock").unlink()
    assert not other.is_abandoned  # nobody knows


def test_rows_and_samples_after_the_checkpoint_and_broken_rows_are_cut(run_train):
    run = Run(run_train("a", "--trainer.max_steps", "3"))
    files = [run.path / "metrics.csv", run.path / "samples.jsonl"]
    before = [file.read_bytes() for file in files]
    saved = run.newest_checkpoint()
    for file in files:
        with file.open("ab") as end:
            end.write('40,2\n{"a\u2028b": 1}\n50,'.encode())
    run.resume(run.config(), run.tokenizer(), saved, {})
    assert [file.read_bytes() for file in files] == before
    run.unlock()


def test_resuming_is_noted(run):
    changed = {"seed": [1, 2]}
    run.resume(parse(["--name", "a", "--seed", "2"]), TOKENIZER, None, changed, "other")
    saved = CheckpointInfo(run.checkpoints / "last.ckpt", 5, 1.0, {"metrics.csv": 0, "samples.jsonl": 0}, 0)
    run.resume(parse(["--name", "a", "--seed", "2"]), TOKENIZER, saved, {}, "")
    first, second = json.loads((run.path / "environment.json").read_text())["resumed"]
    assert (first["step"], first["changed"], first["corpus"]) == (0, changed, "other")
    assert (second["step"], second["changed"]) == (5, {}) and run.config().seed == 2
    assert run.corpus_digest() == "other"  # the last that is known


def test_fits(run):
    assert run.fits(CharTokenizer("cba")) and not run.fits(CharTokenizer("ab"))
    (run.path / "tokenizer.json").unlink()
    assert run.fits(CharTokenizer("ab"))


def test_appended_rows_and_samples(run):
    axes = {"step": 10, "chars": 1280, "train_seconds": 0.5, "flops": 1e9}
    run.append_metrics(axes | {"train/loss": 2.5, "val/loss": 9.0})
    run.append_metrics(axes | {"train/loss": 2.5})
    run.append_metrics(axes | {"step": 20, "val/loss": 1.5, "val/bpc": 2.164, "lr": 0.1})
    run.append_sample(10, "a", "é\n")
    assert (run.path / "samples.jsonl").read_text(encoding="utf-8") == '{"step": 10, "prompt": "a", "text": "é\\n"}\n'
    assert run.losses_at(20) == {"val/loss": 1.5, "val/bpc": 2.164} and run.losses_at(10) == {"val/loss": 9.0}
    assert run.losses_at(30) == {}
    sizes = {name: (run.path / name).stat().st_size for name in ("metrics.csv", "samples.jsonl")}
    assert run.sync() == sizes


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_a_summary_that_cannot_be_read_is_empty(run, content):
    (run.path / "summary.json").write_bytes(content.encode("latin1"))
    assert run.summary() == {}
    run.update_summary(step=3)
    run.update_summary(status="finished")
    assert run.summary() == {"step": 3, "status": "finished"}


def test_the_newest_run_is_the_default(tmp_path):
    with pytest.raises(UserError, match=r"no run in .* yet; make one with: char-lm train"):
        Run.find("", str(tmp_path))
    for age, name in enumerate(("z-old", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
        os.utime(tmp_path / name / "config.yaml", (age, age))
    assert Run.find("", str(tmp_path)).path == Path(tmp_path / "new")
    (tmp_path / "z-old" / "checkpoints").mkdir()
    (tmp_path / "z-old" / "checkpoints" / "last.ckpt").write_text("")
    assert Run.find("", str(tmp_path)).path == Path(tmp_path / "new")
    assert Run.find("", str(tmp_path), "checkpoints/*.ckpt").path == tmp_path / "z-old"
    assert locate("", str(tmp_path)) == tmp_path / "z-old" / "checkpoints" / "last.ckpt"
    assert Run.find("z-old", str(tmp_path)).path == Run.find(str(tmp_path / "z-old")).path == tmp_path / "z-old"
    with pytest.raises(UserError, match=r"no run z-odl, neither as a path nor in .*; did you mean z-old\?"):
        Run.find("z-odl", str(tmp_path))
