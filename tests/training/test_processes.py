"""Two processes (gloo, on the CPU) train as one does; the death of one ends the run, which can be resumed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lm import __version__
from lm.config.options import Config
from lm.files import UserError
from lm.runs.folder import Run
from lm.training.main import existing_run
from lm.training.processes import (
    PARENTS,
    RANKS,
    add_launch,
    environment_of_trial,
    is_first_process,
    launch,
    wait_for_first_process,
)
from lm.training.recorder import Recorder
from tests.commands import ROOT, train
from tests.conftest import SMALL
from tests.harness.crash import differences, metrics
from tests.training.conftest import rows, start, wait_for_step


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ("", True),
        ("LOCAL_RANK=0 NODE_RANK=0", True),  # Lightning's own launcher
        ("LOCAL_RANK=1 NODE_RANK=0", False),
        ("NODE_RANK=1", False),
        ("GROUP_RANK=1", False),
        ("LOCAL_RANK=0 NODE_RANK=1", False),
        ("RANK=0 LOCAL_RANK=0 GROUP_RANK=0", True),  # torchrun
        ("RANK=1 LOCAL_RANK=1 GROUP_RANK=0", False),
        ("RANK=1 LOCAL_RANK=0 GROUP_RANK=1", False),
        ("RANK=2 LOCAL_RANK=0 GROUP_RANK=1", False),
    ],
)
def test_only_global_rank_0_is_the_first_process(environment, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for setting in environment.split():
        monkeypatch.setenv(*setting.split("="))
    assert is_first_process() == first


TORCHRUN = "RANK=3 LOCAL_RANK=1 GROUP_RANK=1 WORLD_SIZE=6 LOCAL_WORLD_SIZE=2"
SRUN = "SLURM_STEP_ID=0 SLURM_NTASKS=6 SLURM_NNODES=3 SLURM_PROCID=4 SLURM_LOCALID=0"


@pytest.fixture
def started(monkeypatch):
    """Set the environment of a process that a launcher has started."""

    def call(environment: str) -> None:
        for name in [name for name in os.environ if name in RANKS or name.endswith("WORLD_SIZE") or "SLURM" in name]:
            monkeypatch.delenv(name)
        for setting in environment.split():
            monkeypatch.setenv(*setting.split("="))

    return call


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_the_training_of_a_search_is_alone_whoever_starts_the_workers(started, environment, monkeypatch):
    started(f"{environment} CUDA_VISIBLE_DEVICES=1")
    alone = environment_of_trial()
    assert alone["CUDA_VISIBLE_DEVICES"] == alone["CHAR_LM_WORKER"] == "1"
    monkeypatch.setattr(os, "environ", alone)
    assert launch() is None and is_first_process()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize("parent", PARENTS)
def test_a_process_ends_when_what_has_started_it_is_killed(parent):
    child = (
        "import lm.training.processes as p, time; p.end_with_launcher(); print('ready', flush=True); time.sleep(600)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    starter = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {parent: "1"}, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout.readline() == "ready\n"
    starter.kill()
    assert starter.communicate(timeout=30) == ("", None)  # the pipe is closed: nobody is left


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN, f"{SRUN} {TORCHRUN}"])
def test_devices_and_nodes_are_those_of_the_launcher(started, environment):
    started(environment)
    assert not is_first_process() and launch() == ("torchrun" if TORCHRUN in environment else "srun", 2, 3)
    wanted = {"trainer.devices": 2, "trainer.num_nodes": 3}
    assert add_launch({"seed": 2}) == {"seed": 2} | wanted == add_launch({"seed": 2} | wanted)
    for key, other in (("trainer.devices", 4), ("trainer.num_nodes", 1)):
        with pytest.raises(UserError, match=f"{key} is {other}, but .* has started {wanted[key]} "):
            add_launch({key: other})


@pytest.mark.parametrize(
    "environment", ["", "SLURM_JOB_ID=3 SLURM_NTASKS=6 SLURM_PROCID=0", "WORLD_SIZE=2 LOCAL_RANK=1 NODE_RANK=0"]
)
def test_without_a_launcher_the_options_hold(started, environment):
    """In a batch script without srun, and in the processes that Lightning itself starts."""
    started(environment)
    assert launch() is None and add_launch({"trainer.devices": 2}) == {"trainer.devices": 2}


def test_rank_decides_where_torchrun_runs_within_slurm(started):
    started("RANK=0 LOCAL_RANK=0 SLURM_PROCID=1")
    assert is_first_process()


def test_fsdp_is_refused(run_train, capsys):
    run_train("a", "--trainer.strategy", "fsdp", code=2)
    assert "whole matrices" in capsys.readouterr().err


def test_resume_auto_starts_and_goes_on(tmp_path, corpus, run_train, capsys):
    """The same command twice, the first time with a smaller budget, ends as one run does."""
    options = ["--eval.every", "4", "--log.every", "1", "--optim.schedule", "constant", "--optim.decay", "0"]
    words = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", "a", "--resume", "auto", *options]
    for steps in ("8", "20"):
        assert train([*words, "--trainer.max_steps", steps]) == 0
    assert differences(tmp_path / "a", run_train("b", *options, "--trainer.max_steps", "20")) == []
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_bytes((tmp_path / "a" / "config.yaml").read_bytes())  # killed at its start
    words[words.index("a")] = "c"
    assert train([*words, "--trainer.max_steps", "20"]) == 0 and rows(tmp_path / "c")[-1]["step"] == 20
    assert train(["--resume", "auto", *SMALL]) == 2
    assert "needs the --name" in capsys.readouterr().err


def test_other_processes_go_on_from_a_checkpoint_only(started, tmp_path):
    """The first makes the folder at about the same time, and starts there."""
    config = Config(name="a", runs=str(tmp_path))
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "config.yaml").touch()
    for environment, there in (("RANK=0", True), ("RANK=1", False)):
        started(environment)
        assert (existing_run(config) is not None) == there
    (tmp_path / "a" / "checkpoints" / "last.ckpt").touch()
    assert existing_run(config) == str(tmp_path / "a")


@pytest.mark.slow
def test_kills_of_workers_and_agents():
    command = [sys.executable, "-m", "tests.harness.elastic", "--kills", "2", "--steps", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
LOSSES = ("train/loss", "val/loss", "val/loss_streaming", "val/accuracy", "grad_norm")


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for a training, but not for ever. Returns its screen."""
    try:
        _, screen = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, screen
    return screen


def other_rank(process: subprocess.Popen) -> int:
    """The id of the process that this one started for the other device."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [int(child) for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(found) == 1
    return found[0]


def assert_gone(pid: int) -> None:
    """The process ends by itself."""
    for _ in range(1200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} was left behind")


def assert_same_losses(a: Path, b: Path, tolerance: float = 2e-5, names: Sequence[str] = LOSSES) -> None:
    for first, second in zip(metrics(a), metrics(b), strict=True):
        assert first["step"] == second["step"]
        for name in names:
            assert (first[name] == "") == (second[name] == "")
            assert float(first[name] or 0) == pytest.approx(float(second[name] or 0), abs=tolerance), (name, first)


def test_two_processes_have_the_losses_of_one(run_train, tmp_path, corpus):
    options = ("--trainer.max_steps", "12", "--eval.every", "6", "--log.every", "2")
    screen = finish(start("two", tmp_path, corpus, *options, *TWO))
    assert "device   2 x cpu" in screen and screen.count("finished after 12 steps") == 1
    assert_same_losses(tmp_path / "two", run_train("one", *options))
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.txt", "one", "two"}


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mingru", "mamba"])
def test_two_processes_with_a_stretch_each_have_the_losses_of_one(run_train, tmp_path, corpus, mixer):
    options = ("--trainer.max_steps", "12", "--eval.every", "6", "--log.every", "2", "--model.mixer", mixer)
    finish(start("two", tmp_path, corpus, *options, *TWO, "--trainer.split", "time"))
    one = run_train("one", *options)
    assert_same_losses(tmp_path / "two", one, 1.1e-5, LOSSES[:-1])  # metrics.csv has five decimals of them
    assert Run(tmp_path / "two").summary()["final"] == pytest.approx(Run(one).summary()["final"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    ["--data.context 109", "--data.corpus selective_copying --data.copying.tokens 4"],
    ids=["text", "copying"],
)
def test_more_devices_than_pieces_of_validation(run_train, tmp_path, corpus, options):
    """1,199 characters in 11 windows of 109, or 512 short problems, are a single piece, which one device reads."""
    options = ("--trainer.max_steps", "4", "--eval.every", "2", "--log.every", "2", *options.split())
    finish(start("two", tmp_path, corpus, *options, *TWO))
    assert_same_losses(tmp_path / "two", run_train("one", *options))


NAN_ON_ONE_RANK = """
import os, signal, sys
from lm.cli import main
from lm.training.task import Task

step = Task.training_step

def broken(self, batch, batch_idx):
    if self.global_step == 12:
        if self.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)  # both must stop after this step, and save
        return step(self, batch, batch_idx) * (float("nan") if self.global_rank == 1 else 1.0)
    return step(self, batch, batch_idx)

Task.training_step = broken
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_on_one_device_stops_both(tmp_path, corpus):
    """One alone would leave, and the other wait for it in the checkpoint, for ever."""
    (tmp_path / "program.py").write_text(NAN_ON_ONE_RANK)
    options = ("--trainer.max_steps", "40", "--eval.every", "10", "--log.every", "10")
    argv = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", "broken", *options, *TWO]
    words, environment = [sys.executable, str(tmp_path / "program.py"), *argv], os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert "stopped: the training loss is nan at step 13" in finish(process, 1)
    assert Run(tmp_path / "broken").summary()["status"] == "diverged"
    assert Run(tmp_path / "broken").newest_checkpoint().step == 10


def commands_of_nodes(launcher: str, port: int, words: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """The command and the variables that start each of two nodes of one device."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    torchrun += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    if launcher == "torchrun":
        return [([*torchrun, "--node_rank", str(node), "train.py", *words], {}) for node in range(2)]
    command = [sys.executable, "train.py", *words, "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [(command, where | {"NODE_RANK": str(node)}) for node in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "Lightning's own"])
def test_two_nodes(run_train, tmp_path, corpus, unused_port, launcher):
    """Both on this machine."""
    options = ("--trainer.max_steps", "6", "--eval.every", "3", "--log.every", "2")
    words = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", "two", *options]
    nodes = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, stderr=subprocess.PIPE, text=True)
        for command, variables in commands_of_nodes(launcher, unused_port, words)
    ]
    first, second = (finish(node) for node in nodes)
    assert "finished after 6 steps" in first and "exists already" not in second and "model  " not in second
    assert_same_losses(tmp_path / "two", run_train("one", *options))
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.txt", "one", "two"}


LONG = ("--trainer.max_steps", "2000", "--eval.every", "20", "--log.every", "10", "--eval.sample_chars", "0")
SHORT = ("--trainer.max_steps", "100")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other process in /proc")
@pytest.mark.parametrize("victim", ["first", "other"])
def test_the_death_of_one_ends_the_run_and_it_can_be_resumed(tmp_path, corpus, victim):
    process = start("killed", tmp_path, corpus, *LONG, *TWO)
    wait_for_step(tmp_path / "killed", 50)
    other = other_rank(process)
    os.kill(process.pid if victim == "first" else other, signal.SIGKILL)
    _, screen = process.communicate(timeout=300)
    assert process.returncode != 0
    if victim == "other":
        assert process.returncode == -signal.SIGKILL or "another process of this training has died" in screen
    assert_gone(other)
    saved = Run(tmp_path / "killed").newest_checkpoint()
    assert saved is not None and saved.step >= 40
    step = saved.step + 40
    argv = ["--resume", str(tmp_path / "killed"), "--trainer.max_steps", str(step)]
    finish(subprocess.Popen([sys.executable, "train.py", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True))
    assert Run(tmp_path / "killed").summary()["step"] == step
    steps = [int(row["step"]) for row in metrics(tmp_path / "killed") if row["train/loss"]]
    assert steps == list(range(10, step + 1, 10))


@pytest.mark.slow
def test_ctrl_c_stops_both_after_the_same_step(run_train, tmp_path, corpus):
    options = ("--trainer.max_steps", "200", "--eval.every", "40", "--log.every", "10")
    process = start("stopped", tmp_path, corpus, *options, *TWO)
    wait_for_step(tmp_path / "stopped", 50)
    process.send_signal(signal.SIGINT)  # to the first alone: the other must follow
    assert "interrupted after" in finish(process, 130)
    argv = ["--resume", str(tmp_path / "stopped")]
    finish(subprocess.Popen([sys.executable, "train.py", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True))
    screen = finish(start("whole", tmp_path, corpus, *options, *TWO))
    assert "deprecated" not in screen and "Warning" not in screen, screen
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_an_error_of_the_other_process_ends_the_run(tmp_path, corpus):
    """Its memory is limited, so that it fails before the two have even met."""
    process = start("failing", tmp_path, corpus, *LONG, *TWO)
    for _ in range(600):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if found := [c for c in children if b"train.py" in Path(f"/proc/{c}/cmdline").read_bytes()]:
            break
        time.sleep(0.05)
    os.kill(int(found[0]), signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode != 0


def test_a_master_that_nobody_serves_is_refused(started, unused_port):
    """By all but the first process, which serves; before torch is asked."""
    rank = "LOCAL_WORLD_SIZE=1 WORLD_SIZE=2 RANK={} MASTER_ADDR={} MASTER_PORT={}".format
    for host, port in (("127.0.0.1", unused_port), ("no-such-host.invalid", 29500), ("127.0.0.1", "70000"), ("x", "y")):
        started(rank(1, host, port))
        with pytest.raises(UserError, match=f"nobody answers at {host}:{port} .MASTER_ADDR, MASTER_PORT."):
            wait_for_first_process(0)
    started(rank(0, "127.0.0.1", unused_port))
    wait_for_first_process(0)
    with socket.create_server(("127.0.0.1", unused_port)):
        started(rank(1, "127.0.0.1", unused_port))
        wait_for_first_process(0)


@pytest.mark.slow
def test_a_master_that_is_something_else_is_refused(tmp_path, corpus):
    """A server that takes the connection and says nothing."""
    program = "import sys, lm.training.trainer as t, lm.cli as c; t.GROUP_SECONDS = 2; sys.exit(c.main(sys.argv[1:]))"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ranks = {"RANK": "1", "GROUP_RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        torchrun = ranks | {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words = ["train", "--name", "a", "--runs", str(tmp_path), "--data.corpus", str(corpus)]
        command, env = [sys.executable, "-c", program, *words], os.environ | torchrun
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and f"what answers at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT) is not" in last


def test_a_run_that_could_not_begin_leaves_nothing(run_train, tmp_path, monkeypatch, capsys):
    """Processes that are not of a kind, or do not meet: the same command can be given again."""

    def refuse(*_):
        raise UserError("process 1 has another text as data.corpus than process 0.")

    path = run_train("b", "--trainer.max_steps", "2")
    monkeypatch.setattr(Recorder, "on_train_start", refuse)
    run_train("a", "--trainer.max_steps", "2", "--log.wandb", "offline", code=2)
    assert not (tmp_path / "a").exists() and "--resume" not in capsys.readouterr().err
    assert train(["--resume", str(path), "--trainer.max_steps", "4"]) == 2
    assert f"than process 0. Then go on with: char-lm train --resume {path}" in capsys.readouterr().err
    monkeypatch.undo()
    run_train("a", "--trainer.max_steps", "2")


@pytest.mark.parametrize(
    ("other", "what"), [(("0", "text"), "version of this program"), ((__version__, "other"), "text as data.corpus")]
)
def test_processes_must_have_the_same_program_and_text(monkeypatch, other, what):
    def gather(found, mine):
        found[:] = [mine, mine, other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    recorder = Recorder.__new__(Recorder)
    recorder.corpus = SimpleNamespace(digest="text")
    with pytest.raises(UserError, match=f"process 2 has another {what} than process 0"):
        recorder._require_same_everywhere(3)
    other = (__version__, "text")
    recorder._require_same_everywhere(3)
