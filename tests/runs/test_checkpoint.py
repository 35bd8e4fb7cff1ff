"""Checkpoint files: atomic, read as data, and the metadata that resuming goes by."""

import pytest
import torch

from lm.files import UserError
from lm.runs.checkpoint import APPENDED, CheckpointInfo, read_checkpoint, save_atomically


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


RECORDER = {
    "seconds": 2.5,
    "sizes": {"metrics.csv": 10, "samples.jsonl": 20, "other": 30},
    "best_step": 4,
    "corpus": "abc",
}
CHECKPOINT = {
    "state_dict": {"model.x": torch.ones(2)},
    "config": "seed: 1\n",
    "characters": "ab",
    "global_step": 7,
    "callbacks": {"Recorder": RECORDER},
}


def test_metadata(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(CHECKPOINT, path)
    sizes = {"metrics.csv": 10, "samples.jsonl": 20}
    assert CheckpointInfo.read(path) == CheckpointInfo(path, 7, 2.5, sizes, 4, "abc") and tuple(sizes) == APPENDED
    for corpus in ({}, {"corpus": 5}):  # of older versions, or damaged
        recorder = {key: value for key, value in RECORDER.items() if key != "corpus"} | corpus
        torch.save(CHECKPOINT | {"callbacks": {"Recorder": recorder}}, path)
        assert CheckpointInfo.read(path).corpus == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"callbacks": None},
        {"callbacks": {}},
        {"callbacks": {"Recorder": 5}},
        {"global_step": "7"},
        *({"callbacks": {"Recorder": RECORDER | {name: None}}} for name in ("seconds", "sizes", "best_step")),
        {"callbacks": {"Recorder": RECORDER | {"sizes": {"metrics.csv": 10}}}},
        {"callbacks": {"Recorder": RECORDER | {"sizes": {"metrics.csv": 10, "samples.jsonl": "20"}}}},
    ],
    ids=str,
)
def test_what_training_cannot_go_on_from(changes, tmp_path):
    torch.save(CHECKPOINT | changes, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: not a checkpoint that training can go on from"):
        CheckpointInfo.read(tmp_path / "a.ckpt")


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(UserError, match=r"no checkpoint .*x\.ckpt"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="not a plain file"):
        read_checkpoint(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(path)
    for content in (
        [1],
        {name: value for name, value in CHECKPOINT.items() if name != "config"},
        CHECKPOINT | {"characters": 5},
        CHECKPOINT | {"state_dict": {"model.x": 1.0}},
        CHECKPOINT | {"state_dict": {1: torch.ones(1)}},
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match="not a checkpoint of this program"):
            read_checkpoint(path)
    torch.save(CHECKPOINT, path)
    assert read_checkpoint(path)["global_step"] == 7
