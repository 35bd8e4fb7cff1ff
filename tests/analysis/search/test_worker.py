"""`char-lm sweep --search`: trials are trained, pruned, continued and counted; what is refused; killed workers."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import optuna
import pytest

from lm.analysis.search import worker
from lm.analysis.sweep import TRAIN
from lm.config.resolve import parse
from lm.runs.folder import Run
from tests import commands, postgres
from tests.commands import ROOT
from tests.conftest import SMALL
from tests.fake_runs import change_summary, run_of
from tests.harness import search as harness

SPACE = ["optim.muon_lr=log(0.005,0.05)", "model.dropout=0.0..0.3"]


class Training:
    """A training in this process that has ended."""

    def __init__(self, words: list[str], train) -> None:
        self.returncode = train(words[len(TRAIN) :])

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Calls the search of one or more systems; trains by a function of the words of a run. Returns their names."""
    monkeypatch.setattr(worker, "POLL", 0.01)

    def call(train, *own: str, mixers=("mingru",), space=SPACE, options=(), code=0) -> list[str]:
        ran = []

        def start(words):
            ran.append(words[words.index("--name") + 1])
            return Training(words, train)

        monkeypatch.setattr(worker, "start", start)
        words = ["--mixers", *mixers, "--search", *space, "--study", "s", "--runs", str(tmp_path / "runs"), *own]
        assert commands.sweep([*words, "--", *SMALL, *(options or ["--trainer.max_steps", "40"])]) == code
        return ran

    return call


@pytest.fixture
def fake(tmp_path):
    """Makes a training that writes these losses, ten steps apart, and returns a code."""

    def make(*losses: float, code: int = 0, status: str = "finished"):
        def train(words: list[str]) -> int:
            name = words[words.index("--name") + 1]
            shutil.rmtree(tmp_path / "runs" / name, ignore_errors=True)
            rows = {10 * (i + 1): loss for i, loss in enumerate(losses)}
            path = run_of(tmp_path / "runs", name, rows, trainer={"max_steps": 40, "max_minutes": None})
            change_summary(path, status=status)
            return code

        return train

    return make


def statuses(tmp_path) -> dict[str, str]:
    return {path.name: Run(path).summary()["status"] for path in sorted((tmp_path / "runs").glob("*-trial*"))}


def test_a_search_trains_each_system_as_often_and_names_the_best(search, tmp_path, corpus, capfd):
    options = ("--trainer.max_steps", "2", "--data.corpus", str(corpus))
    names = search(commands.train, "--trials", "2", mixers=("mingru", "minlstm"), options=options)
    assert names == ["mingru-trial000", "minlstm-trial000", "mingru-trial001", "minlstm-trial001"]
    assert set(statuses(tmp_path).values()) == {"finished"}
    out = capfd.readouterr().out
    best = {name: Run(tmp_path / "runs" / name).losses_at(2)["val/loss"] for name in names}
    assert all(f"{min(best[f'{m}-trial000'], best[f'{m}-trial001']):.4f}" in out for m in ("mingru", "minlstm"))
    (line,) = re.findall("train the best:  char-lm train (.*)", out)
    winner = Run(tmp_path / "runs" / min(best, key=best.__getitem__)).config()
    config = parse(shlex.split(line))
    assert (config.optim, config.model) == (winner.optim, winner.model) and config.seed == 1
    first = [Run(tmp_path / "runs" / f"{m}-trial000").config().optim for m in ("mingru", "minlstm")]
    assert first[0] == first[1]  # all systems begin with the same draws
    assert search(commands.train, "--trials", "2", mixers=("mingru", "minlstm"), options=options) == []
    page = tmp_path / "page.html"
    assert "mingru-trial002" in search(commands.train, "--trials", "3", "--html", str(page), options=options)
    assert '"parameters":[{"key":"model.dropout"' in page.read_text()


def test_bad_trials_are_pruned_but_not_at_first(search, fake, tmp_path, capsys):
    search(fake(3.0, 2.0, 1.9, 1.8), "--trials", "5")
    late = search(fake(4.0, 2.5, 2.0, code=130, status="interrupted"), "--trials", "6")
    assert statuses(tmp_path)[late[0]] == "pruned"
    search(fake(4.0, 1.9, 1.8, 1.7), "--trials", "7")  # bad only at a quarter of the budget
    assert re.search(r"mingru +1\.7000 +mingru-trial006 .* 6 +1 +0 +0\n", capsys.readouterr().out)


def test_a_stopped_search_goes_on_in_the_same_folder(search, fake, tmp_path, capsys):
    def interrupt(words):
        fake(3.0, status="interrupted")(words)
        raise KeyboardInterrupt

    assert search(interrupt, "--trials", "2", code=130) == ["mingru-trial000"]
    assert "mingru: 1 unfinished; the same command goes on" in capsys.readouterr().out
    assert search(fake(1.5, 1.4, 1.3, 1.2), "--trials", "2") == ["mingru-trial000", "mingru-trial002"]
    assert re.search(r"mingru +1\.2000 .* 2 +0 +0 +0\n", capsys.readouterr().out)


def test_failed_and_diverged_trainings_are_counted_and_not_repeated(search, fake, capsys):
    assert len(search(fake(code=1, status="failed"), "--trials", "1", code=1)) == 1
    assert len(search(fake(2.0, code=1, status="diverged"), "--trials", "2", code=1)) == 1
    assert len(search(fake(2.0), "--trials", "3", code=1)) == 1
    assert search(fake(2.0), "--trials", "3", code=1) == []
    assert re.search(r"mingru +2\.0000 +mingru-trial002 .* 1 +0 +1 +1\n", capsys.readouterr().out)


def test_an_error_of_the_machine_ends_the_worker_and_a_set_after_three_of_them(search, fake):
    for _ in range(3):
        assert search(fake(code=2), "--trials", "1", code=2) == ["mingru-trial000"]
    assert search(fake(2.0), "--trials", "1", code=1) == []


def test_few_choices_are_tried_once_each(search, fake, tmp_path, capsys):
    names = search(fake(2.0), "--trials", "9", space=["optim.warmup_steps=1|2|3"])
    assert len(names) == 3 and "mingru: there are no more than 3 sets of parameters" in capsys.readouterr().out


def test_a_finished_run_is_not_trained_again_when_its_worker_died_before_it_told(search, fake, monkeypatch, capsys):
    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "conclude", die)
        search(fake(9.0, 9.0, 9.0, 2.0), "--trials", "1", code=130)
    assert search(lambda words: 0, "--trials", "1") == ["mingru-trial000"]  # as --resume auto finds it finished
    assert re.search(r"mingru +2\.0000 +mingru-trial000 .* 1 +0 +0 +0\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--trials", "0"], "--trials must be at least 1, not 0"),
        (["--search", "model.droput=0..1"], "unknown option model.droput; did you mean model.dropout?"),
        (["--search", "model.mlp_expansion=0.01..4"], "model.mlp_expansion 0.01 leaves fewer than 3 channels"),
        (["--search", "model.mixer=gru|lstm"], "--search model.mixer: this option is given already"),
        (["--search", "trainer.max_steps=2..4"], "--search trainer.max_steps: this option is given already"),
        (["--search", "seed=1..9"], "--search seed: this option is given already"),
        (["--search", "runs=a|b"], "--search runs: this option is given already"),
        (["--study", "a/b"], "--study 'a/b': use letters, digits"),
        (["--seeds", "1", "2"], "--search goes together neither with --vary nor with several --seeds"),
        (["--vary", "model.layers", "1"], "--search goes together neither with --vary nor with several --seeds"),
        (
            ["--configs", "a/gru.yaml", "b/gru.yaml"],
            "--search needs systems of different names, not mingru, a/gru.yaml",
        ),
        (["--storage", "redis://x"], "--storage redis://x: expected postgresql://USER@HOST/DATABASE or sqlite:///FILE"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(own, message, search, tmp_path, capsys):
    assert search(None, *own, code=2) == []
    assert message in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_configuration_must_have_the_name_of_a_run(tmp_path, capsys):
    (tmp_path / "a b.yaml").write_text("seed: 1\n")
    words = ["--configs", str(tmp_path / "a b.yaml"), "--search", *SPACE, "--study", "s"]
    words += ["--runs", str(tmp_path / "runs")]
    assert commands.sweep(words) == 2 and not (tmp_path / "runs").exists()
    assert "name 'a b-trial000': use letters, digits" in capsys.readouterr().err


def test_a_search_needs_both_of_its_options(capsys):
    for own in (["--study", "s"], ["--search", *SPACE], ["--storage", "sqlite:///x"]):
        assert commands.sweep(["--mixers", "gru", *own]) == 2
        assert "a search needs --search KEY=VALUES ... and --study NAME" in capsys.readouterr().err


def test_a_study_keeps_its_options_and_its_folder(search, fake, tmp_path, capsys):
    search(fake(2.0), "--trials", "1")
    for change, message in [
        ({"space": [SPACE[0], "model.dropout=0.0..0.2"]}, "--search model.dropout 0.0..0.3 for mingru, not 0.0..0.2"),
        ({"space": SPACE[:1]}, "--search model.dropout 0.0..0.3 for mingru, not without it"),
        ({"options": ["--trainer.max_steps", "50"]}, "study s was made with trainer.max_steps 40 for mingru, not 50"),
    ]:
        assert search(None, "--trials", "2", code=2, **change) == []
        assert message in capsys.readouterr().err
    files = sorted(tmp_path.rglob("*"))
    search(None, "--study", "other", code=2)
    assert "mingru-trial000 exists already and belongs to no trial of a new study" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == files
    assert search(fake(2.0), "--trials", "1", mixers=("mingru", "gru")) == ["gru-trial000"]
    url = f"sqlite:///{tmp_path / 'runs' / 's.sqlite'}"
    optuna.create_study(storage=url, study_name="s-lstm").ask()
    search(None, mixers=("lstm",), code=2)
    assert "study s-lstm is not of this program; choose another --study" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_saves_the_trial_and_the_same_command_goes_on_with_it(tmp_path, corpus):
    words = ["--mixers", "mingru", "--search", *SPACE, "--study", "s", "--trials", "1", "--runs"]
    words += [str(tmp_path / "runs"), "--", *SMALL, "--data.corpus", str(corpus), "--trainer.max_steps", "400"]
    words += ["--eval.every", "20"]
    command, run = [sys.executable, "-m", "lm", "sweep", *words], Run(tmp_path / "runs" / "mingru-trial000")
    stopped = subprocess.Popen(command, cwd=ROOT)
    while not run.losses_at(20):
        assert stopped.poll() is None
        time.sleep(0.1)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(timeout=60) == 130
    assert run.summary()["status"] == "interrupted" and 20 <= run.summary()["step"] < 400
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert run.summary()["status"] == "finished" and run.summary()["step"] == 400
    history = json.loads((run.path / "environment.json").read_text())
    assert [entry["step"] >= 20 for entry in history["resumed"]] == [True]


@pytest.mark.slow
@pytest.mark.skipif(postgres.programs() is None, reason=postgres.MISSING)
def test_four_workers_on_postgresql_two_of_them_killed(tmp_path, capfd):
    with postgres.server() as url:
        outcome = harness.search(tmp_path, url, trials=6, workers=4, kills=2, steps=200)
        for wrong, message in [
            (url.replace("correct", "wrong"), "password authentication failed"),
            (url.replace("/postgres?", "/nowhere?"), 'database "nowhere" does not exist'),
        ]:
            capfd.readouterr()
            words = ["--mixers", "gru", "--search", *SPACE, "--study", "x", "--storage", wrong]
            assert commands.sweep([*words, "--runs", str(tmp_path / "x")]) == 2
            err = capfd.readouterr().err
            assert message in err and err.count("\n") == 1 and "horse" not in err and not (tmp_path / "x").exists()
    assert len(outcome.killed) == 2 and outcome.codes == [0, 0]
    for system in harness.SYSTEMS:
        assert len(outcome.sets[system]) == 6
        assert (outcome.lost(system), outcome.finished_twice(system)) == (0, 0)
        folders = sorted((tmp_path / "runs").glob(f"{system}-trial*"))
        assert [path.name for path in folders] == [f"{system}-trial{each.number:03}" for each in outcome.sets[system]]
        assert {Run(path).summary()["status"] for path in folders} <= {"finished", "pruned"}
    for name in outcome.killed:
        history = json.loads((tmp_path / "runs" / name / "environment.json").read_text())
        assert history["resumed"][0]["step"] > 0
