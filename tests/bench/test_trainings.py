"""Trainings that are timed: speed from metrics.csv, checkouts, processes."""

import pytest

from lm.bench import trainings
from lm.config.command import Parser
from lm.config.options import Config
from lm.files import UserError


def write_rows(folder, rows):
    lines = [f"{step},{seconds},{loss}" for step, seconds, loss in rows]
    (folder / "metrics.csv").write_text("\n".join(["step,train_seconds,train/loss", *lines]) + "\n")


def test_the_first_tenth_is_not_counted(tmp_path):
    """The rows at steps 20 to 200: 18 steps a second; a row of a validation is none of them."""
    write_rows(tmp_path, [(10, 9.0, 3.0), (20, 10.0, 2.0), (110, 17.0, 2.0), (200, 20.0, 1.0), (200, 25.0, "")])
    assert trainings.seconds_per_step(tmp_path) == pytest.approx(10 / 180)


def test_too_few_rows_are_refused(tmp_path):
    write_rows(tmp_path, [(1, 9.0, 3.0), (200, 10.0, 2.0)])
    with pytest.raises(UserError, match="too few steps"):
        trainings.seconds_per_step(tmp_path)


@pytest.mark.parametrize(("steps", "every"), [(2, 1), (20, 6), (200, 10)])
def test_runs_have_at_least_two_counted_rows(tmp_path, steps, every):
    given = Parser("char-lm train", "", Config).read(trainings.words_for(tmp_path, "a", steps))
    assert given["log.every"] == every and given["trainer.max_steps"] == steps < given["eval.every"]


def test_a_checkout_is_that_commit_and_is_removed():
    with trainings.checkout("HEAD") as tree:
        assert tree != trainings.TREE and (tree / "train.py").is_file() and (tree / "lm" / "bench").is_dir()
    assert not tree.exists()


def test_a_commit_that_is_not_there_is_one_line():
    with (
        pytest.raises(UserError, match=r"git: .*nothing-like-it") as problem,
        trainings.checkout("nothing-like-it"),
    ):
        pass
    assert "\n" not in str(problem.value)


def test_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs git"), trainings.checkout("HEAD"):
        pass


def test_a_training_runs_by_the_given_checkout_in_the_current_folder(tmp_path, monkeypatch):
    tree, here = tmp_path / "tree", tmp_path / "here"
    (tree / "lm").mkdir(parents=True)
    here.mkdir()
    (tree / "lm" / "__init__.py").write_text("place = __file__")
    code = "import os, sys, lm; open('said', 'w').write(f'{lm.place} {sys.argv[1:]} {os.environ[\"OMP_NUM_THREADS\"]}')"
    (tree / "train.py").write_text(code)
    monkeypatch.chdir(here)
    trainings.train_at(tree, ["--seed", "3"], OMP_NUM_THREADS="7")
    assert (here / "said").read_text() == f"{tree / 'lm' / '__init__.py'} ['--seed', '3'] 7"


def test_a_training_that_fails_says_why(tmp_path):
    (tmp_path / "train.py").write_text("import sys; print('a\\nno such option', file=sys.stderr); sys.exit(2)")
    with pytest.raises(UserError, match=r"ended with code 2: no such option$"):
        trainings.train_at(tmp_path, [])


def test_the_configuration_has_the_budget(tmp_path):
    (tmp_path / "a.yaml").write_text("trainer:\n  max_minutes: 3\nmodel:\n  width: 64\n")
    config = trainings.config_of(["--config", str(tmp_path / "a.yaml"), "--model.layers", "2"], 17)
    assert (config.trainer.max_steps, config.trainer.max_minutes) == (17, None)
    assert (config.model.width, config.model.layers) == (64, 2)


@pytest.mark.parametrize("words", ["--resume a", "--trainer.devices 2", "--model.widht 3", "--trainer.max_minutes 1"])
def test_what_cannot_be_timed_is_refused(words):
    with pytest.raises(UserError):
        trainings.config_of(words.split(), 10)
