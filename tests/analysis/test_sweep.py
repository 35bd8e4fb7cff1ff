"""The sweep: every run once, finished ones skipped, broken ones resumed, another configuration refused."""

import json
import signal
import subprocess
import sys

import pytest

from lm.analysis import sweep
from lm.config.command import parse as parse_options
from lm.config.resolve import parse
from lm.runs.folder import Run
from tests import commands
from tests.conftest import SMALL


@pytest.fixture
def run_sweep(tmp_path, corpus, monkeypatch):
    """Calls the sweep with train.py in this process; returns the commands that it ran."""

    ran = []

    def execute(words):
        ran.append(words[len(sweep.TRAIN) :])
        return commands.train(words[len(sweep.TRAIN) :])

    monkeypatch.setattr(sweep, "execute", execute)

    def call(*options, code=0):
        ran.clear()
        own = ["--mixers", "mingru", "[mingru,attention]", "--seeds", "1", "2", "--runs", str(tmp_path / "sweep")]
        assert commands.sweep([*own, "--", *SMALL, "--data.corpus", str(corpus), *options]) == code
        return list(ran)

    return call


def test_sweep_skips_resumes_and_reports(run_sweep, tmp_path, capsys):
    steps = ("--trainer.max_steps", "6")
    assert len(run_sweep(*steps)) == 4
    names = {p.name for p in (tmp_path / "sweep").iterdir()}
    assert names == {"mingru-seed1", "mingru-seed2", "mingru+attention-seed1", "mingru+attention-seed2"}
    assert "mingru+attention" in capsys.readouterr().out
    assert run_sweep(*steps) == []
    broken = Run(tmp_path / "sweep" / "mingru-seed2")
    broken.write("summary.json", json.dumps(broken.summary() | {"status": "running"}))
    assert run_sweep(*steps) == [["--resume", str(broken.path)]]
    run_sweep("--trainer.max_steps", "7", code=2)
    assert "was made with other options" in capsys.readouterr().err


def test_a_run_that_failed_is_the_exit_code_and_the_others_are_trained(run_sweep, tmp_path, monkeypatch, capsys):
    def execute(words):
        code = commands.train(words[len(sweep.TRAIN) :])
        return 1 if "mingru-seed1" in words else code

    monkeypatch.setattr(sweep, "execute", execute)
    run_sweep("--trainer.max_steps", "2", code=1)
    assert len(list((tmp_path / "sweep").iterdir())) == 4 and "mingru x2" in capsys.readouterr().out


def test_a_run_that_diverged_before_is_not_trained_again_and_is_the_exit_code(run_sweep, tmp_path):
    run_sweep("--trainer.max_steps", "2")
    run = Run(tmp_path / "sweep" / "mingru-seed1")
    run.write("summary.json", json.dumps(run.summary() | {"status": "diverged"}))
    assert run_sweep("--trainer.max_steps", "2", code=1) == []


TRAINING = """
import signal, sys, time
from lm.training.processes import end_with_launcher
end_with_launcher()
try:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # longer than Popen waits after Ctrl-C
    print("saved", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_lets_the_training_save(number):
    if number == signal.SIGTERM and sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's end")
    code = f"from lm.analysis import sweep; sweep.execute({[sys.executable, '-c', TRAINING]!r})"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=commands.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as sweeping:
        assert sweeping.stdout and sweeping.stdout.readline() == "ready\n"
        sweeping.send_signal(number)
        assert sweeping.stdout.read() == "saved\n"  # until the training too has closed it
        assert sweeping.wait() == -number


def test_configurations_at_several_values(tmp_path):
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for file, mixer in zip(files, ("mingru", "minlstm"), strict=True):
        file.write_text(f"model: {{mixer: {mixer}, width: 64, layers: 3}}\nseed: 7\n")
    words = ["--configs", *map(str, files), "--vary", "model.layers", "1", "2"]
    own = parse_options(sweep.Options, words, "char-lm sweep", sweep.USAGE)
    found = {name: parse(argv) for name, argv in sweep.runs(own, ["--trainer.max_steps", "2"])}
    assert set(found) == {f"{name}-layers{n}-seed1" for name in ("one", "two") for n in (1, 2)}
    model = found["two-layers1-seed1"].model
    assert (model.mixer, model.layers, model.width) == ("minlstm", 1, 64)
    assert all((config.name, config.seed, config.trainer.max_steps) == (name, 1, 2) for name, config in found.items())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([], "give --mixers or --configs"),
        (["--mixers", "gru", "--vary", "model.layers"], "--vary model.layers needs values"),
        (["--configs", "nowhere.yaml"], "nowhere.yaml"),
        (["--mixers", "gru", "--vary", "model.depth", "2"], "unknown option --model.depth"),
    ],
)
def test_nothing_to_train_is_refused(own, message, tmp_path, capfd):
    code = commands.sweep([*own, "--runs", str(tmp_path / "none"), "--", "--log.wandb", "disabled"])
    assert code == 2 and message in capfd.readouterr().err
