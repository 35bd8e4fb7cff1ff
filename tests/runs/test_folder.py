"""The run folder: rows cut back, whole checkpoints, what load takes and refuses."""

import os
from pathlib import Path

import pytest
import torch

from lm import load
from lm.files import UserError, alias
from lm.runs.checkpoint import read_checkpoint, save_atomically
from lm.runs.folder import Run


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


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    save_atomically({"value": 1}, path)

    class Broken:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*last.ckpt: No space left on device"):
        save_atomically({"value": Broken()}, path)
    assert torch.load(path, weights_only=True) == {"value": 1} and list(tmp_path.iterdir()) == [path]


def test_the_checkpoint_before_stays_under_its_name(tmp_path):
    path = tmp_path / "last.ckpt"
    for value in range(3):
        save_atomically({"value": value}, path, "previous.ckpt")
    assert torch.load(path, weights_only=True) == {"value": 2}
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True) == {"value": 1}


def test_without_links_names_are_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    save_atomically({"value": 1}, tmp_path / "last.ckpt")
    alias(tmp_path / "last.ckpt", "best.ckpt")
    assert torch.load(tmp_path / "best.ckpt", weights_only=True) == {"value": 1}
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_alias_is_independent_of_a_later_save(tmp_path):
    path = tmp_path / "last.ckpt"
    save_atomically({"value": 1}, path)
    alias(path, "best.ckpt")
    save_atomically({"value": 2}, path)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True) == {"value": 1}


def test_load_takes_a_folder_a_name_and_a_file(run_train, tmp_path, monkeypatch):
    run = run_train("a", "--trainer.max_steps", "3")
    ids = torch.zeros(1, 4, dtype=torch.int64)
    expected = load(run)[0](ids)[0]
    assert torch.equal(load(str(run / "checkpoints" / "last.ckpt"))[0](ids)[0], expected)
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load("a")[0](ids)[0], expected)
    with pytest.raises(UserError, match="did you mean a"):
        load("aa")


def test_load_refuses_what_does_not_fit(run_train, tmp_path):
    run = run_train("a", "--trainer.max_steps", "3")
    good = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)

    def refuse(message, path=tmp_path / "x.ckpt", **changes):
        torch.save(good | changes, path)
        with pytest.raises(UserError, match=message):
            load(path)

    refuse("do not fit", characters="ab")
    refuse("unknown key model.future", config="model:\n  future: 1\n")
    (tmp_path / "x.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "x.ckpt")
    torch.save([1], tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        read_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="no checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_the_newest_run_is_the_default(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        Run.find("", str(tmp_path))
    for age, name in enumerate(("old", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
        os.utime(tmp_path / name / "config.yaml", (age, age))
    assert Run.find("", str(tmp_path)).path == Path(tmp_path / "new")
