"""The processes of a training on several devices: who started them, and which of them this one is."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from lm.files import UserError

RUN_NAME = "CHAR_LM_RUN_NAME"
"""Environment variable that passes a run's name, if it is made from the time, to the processes of other devices."""
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Variables that torchrun, Lightning or srun sets in the processes that they start. If RANK is there, it decides."""
WORKER = "CHAR_LM_WORKER"
"""Environment variable that says that a sweep, or the worker of a search, has started this process."""
PARENTS = {"TORCHELASTIC_RUN_ID": "SIGKILL", WORKER: "SIGTERM"}
"""Variables that say what has started this process, and the signal that it gets when that is killed. One of a group
ends at once, as the others would wait for it, and the run's lock would stay taken; one alone saves a checkpoint."""
LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "MASTER_", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "RANK", "NODE_RANK")
"""How the variables of launchers begin."""
PR_SET_PDEATHSIG = 1
"""From Linux's prctl.h."""


class Launch(NamedTuple):
    """What a launcher has started."""

    launcher: str
    devices: int
    """processes of each node, one for each device"""
    nodes: int


def launch() -> Launch | None:
    """What torchrun or srun has started together with this process; None for a process that was started alone."""
    values = {name: int(value) for name, value in os.environ.items() if value.isdecimal()}
    if "LOCAL_WORLD_SIZE" in values and "WORLD_SIZE" in values:
        return Launch("torchrun", values["LOCAL_WORLD_SIZE"], values["WORLD_SIZE"] // values["LOCAL_WORLD_SIZE"])
    if "SLURM_STEP_ID" in values and values.get("SLURM_NTASKS", 1) > 1:
        nodes = values.get("SLURM_NNODES", 1)
        return Launch("srun", values["SLURM_NTASKS"] // nodes, nodes)
    return None


def add_launch(given: dict[str, Any]) -> dict[str, Any]:
    """Options of `char-lm train` with the devices and nodes of the launcher, if there is one.

    Raises:
        UserError: the options ask for others.
    """
    if (started := launch()) is None:
        return given
    found = {"trainer.devices": started.devices, "trainer.num_nodes": started.nodes}
    for key, value in found.items():
        if given.get(key, value) != value:
            what = "processes on each node" if key == "trainer.devices" else "nodes"
            raise UserError(f"{key} is {given[key]}, but {started.launcher} has started {value} {what}; leave it out")
    return given | found


def is_first_process() -> bool:
    """Whether this process has the global rank 0; only that one makes the run folder and prints."""
    names = ["RANK"] if "RANK" in os.environ else RANKS
    return all(os.environ.get(name, "0") == "0" for name in names)


def wait_for_first_process(seconds: float) -> None:
    """Wait until somebody answers at the address where a launcher says that all processes meet.

    torch's own store tries for longer, and prints what happens below it.

    Raises:
        UserError: nobody does.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or launch() is None or is_first_process():
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=max(1, deadline - time.monotonic())).close()
            return
        except (OSError, ValueError, OverflowError) as error:  # also an unknown host, or what is no port
            if time.monotonic() > deadline or not isinstance(error, OSError):
                reason = getattr(error, "strerror", None) or error
                raise UserError(
                    f"nobody answers at {host}:{port} (MASTER_ADDR, MASTER_PORT), where all processes meet: {reason}"
                ) from None
            time.sleep(0.5)


@contextmanager
def give_up_after(seconds: float) -> Iterator[None]:
    """End a process other than the first if what is within takes longer: torch's store waits for ever for the answers
    of a server that is none of its own."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} (MASTER_ADDR, MASTER_PORT)"

    def end() -> None:
        print(f"char-lm train: error: what answers at {where} is not the first process of a training", file=sys.stderr)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    if not is_first_process():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_with_launcher() -> None:
    """Let the system end this process when one of PARENTS is killed. Does nothing outside them and Linux."""
    for name, kind in PARENTS.items():
        if name in os.environ:
            with suppress(AttributeError, OSError, TypeError):
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, getattr(signal, kind))


def environment_of_trial() -> dict[str, str]:
    """The environment of a training of a sweep or a search: alone, even if a launcher such as srun has started that."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)} | {WORKER: "1"}


def print_status(text: str, end: str = "\n") -> None:
    """Print on stderr, in the first process only."""
    if is_first_process():
        print(text, end=end, file=sys.stderr, flush=True)
