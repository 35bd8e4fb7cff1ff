"""Trained models by folder, name and file; what does not fit together is refused."""

import pytest
import torch

from lm import load
from lm.files import UserError
from lm.runs.load import PRETRAINED, digest_of, locate


def test_load_takes_a_folder_a_name_and_a_file(run_train, tmp_path, monkeypatch):
    run = run_train("a", "--trainer.max_steps", "3")
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model, tokenizer = load(run)
    expected = model(ids)[0]
    assert not model.training and len(tokenizer) == model.head.weight.shape[0]
    assert torch.equal(load(str(run / "checkpoints" / "last.ckpt"))[0](ids)[0], expected)
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load("a")[0](ids)[0], expected)
    with pytest.raises(UserError, match="did you mean a"):
        load("aa")


def test_what_a_name_means(tmp_path, monkeypatch):
    """The best checkpoint of a run, or else the newest; an export; `pretrained` unless there is such a run."""
    monkeypatch.chdir(tmp_path)
    checkpoints = tmp_path / "runs" / "a" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints.parent / "config.yaml").touch()
    with pytest.raises(UserError, match="no checkpoint there yet"):
        locate("a")
    for name in ("previous.ckpt", "last.ckpt", "best.ckpt"):
        (checkpoints / name).touch()
        assert locate("a").resolve() == locate("").resolve() == checkpoints / name
    assert locate(str(checkpoints / "last.ckpt")) == checkpoints / "last.ckpt"
    (tmp_path / "model.safetensors").touch()
    assert locate(str(tmp_path)) == locate(str(tmp_path / "model.safetensors")) == tmp_path
    assert locate("pretrained") == PRETRAINED
    checkpoints.parent.rename(tmp_path / "runs" / "pretrained")
    assert locate("pretrained").name == "best.ckpt"


def test_load_refuses_what_does_not_fit(run_train, tmp_path):
    run = run_train("a", "--trainer.max_steps", "3")
    good = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for message, changes in (
        ("do not fit", {"characters": "ab"}),
        ("unknown key model.future", {"config": "model:\n  future: 1\n"}),
    ):
        torch.save(good | changes, tmp_path / "x.ckpt")
        with pytest.raises(UserError, match=message):
            load(tmp_path / "x.ckpt")


def test_the_digest_of_weights_sees_names_types_shapes_and_values():
    weights = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3.0)}
    found = {digest_of(weights), digest_of({"a": weights["a"], "b": weights["b"]})}
    assert len(found) == 1  # the order does not matter
    for other in (
        {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3.0)},
        {"b": torch.tensor([[1.0, 2.5]]), "a": torch.tensor(3.0)},
        {"c": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3.0)},
        {name: weight.bfloat16() for name, weight in weights.items()},
    ):
        found.add(digest_of(other))
    assert len(found) == 5
