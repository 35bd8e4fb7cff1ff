"""The trials of one system, shared by all workers through the storage.

What is searched are sets of parameters. A set has one trial, and another one each time that a worker has died or was
stopped: all trials with the same parameters are one set, in the order of their numbers. How a set stands follows from
them alone, so that it does not matter at which moment a worker is killed, and whether two workers do the same thing at
the same time:

- The first trial that has not failed is the set's; later ones are ignored. It is waiting, running or finished.
- If all have failed, the set is given another one, unless the training itself has failed.
- The sets with the lowest numbers, as many as `--trials`, belong to the search; later ones are ignored.

A trial is stored whole, waiting, and is claimed by an atomic change of its state after its first heartbeat.
"""

import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm.analysis.search.space import Parameter

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

FAILED, DIVERGED = "failed", "diverged"
"""Attributes of a trial: the exit code of a training that failed; that its loss was no longer a number."""
ATTEMPTS = 3
"""Trainings of a set that may end by an error of the machine, such as a full disk, before the set has failed."""
DRAWS = 100
"""Sets to draw before a space of few sets is taken to be exhausted."""
OVER = ("complete", "pruned", "diverged", "failed")
"""States of a set of parameters for which nothing is left to do."""


class TakenOver(Exception):
    """Another worker has taken a trial over, as this one gave no sign of life for too long."""


@dataclass
class ParameterSet:
    """All trials with the same parameters."""

    trials: list["FrozenTrial"]

    @property
    def number(self) -> int:
        """The number of the first trial, which names the run folder."""
        return self.trials[0].number

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by their keys."""
        return self.trials[0].params

    @property
    def current(self) -> "FrozenTrial | None":
        """The trial that counts; None if all have failed."""
        return next((trial for trial in self.trials if trial.state.name != "FAIL"), None)

    @property
    def loss(self) -> float:
        """Of a complete set: its best validation loss."""
        assert self.current and self.current.value is not None
        return self.current.value

    @property
    def state(self) -> str:
        """One of OVER, running, waiting, or lost: its worker has died or was stopped."""
        if self.current is None:
            codes = [trial.user_attrs[FAILED] for trial in self.trials if FAILED in trial.user_attrs]
            return "failed" if 1 in codes or len(codes) >= ATTEMPTS else "lost"
        return "diverged" if DIVERGED in self.current.user_attrs else self.current.state.name.lower()


class Study:
    """The trials of a system.

    Args:
        storage: shared by all workers.
        name: of Optuna's study, which is made if it does not exist.
        space: the parameters.
        most: sets of parameters to try.
        seed: of the draws. A search by one worker is reproducible if its trainings are.
    """

    def __init__(self, storage: "RDBStorage", name: str, space: list[Parameter], most: int, seed: int) -> None:
        import optuna

        self.storage, self.space, self.most, self.seed = storage, space, most, seed
        self.optuna = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        self.id = storage.get_study_id_from_name(name)
        self.exhausted = False

    def sets(self) -> list[ParameterSet]:
        """The sets of parameters that belong to the search, in the order of their first trials."""
        return group(self.optuna.get_trials(deepcopy=False))[: self.most]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, here and for other workers."""
        return self._all_are(*OVER)

    def _all_are(self, *states: str) -> bool:
        """Whether there are all sets of the search, each in one of these states."""
        sets = self.sets()
        return (len(sets) == self.most or self.exhausted) and all(each.state in states for each in sets)

    def claim(self) -> "Claim | None":
        """Take a set to train, before new ones those that other workers have left; None if there is none just now."""
        import optuna

        optuna.storages.fail_stale_trials(self.optuna)
        while not self._all_are(*OVER, "running"):  # other workers may be quicker
            claims = (self._take(each) for each in self._waiting())
            if claim := next(filter(None, claims), None):
                return claim
        return None

    def _waiting(self) -> list[ParameterSet]:
        """The sets that nobody trains, among them those that were lost, or a new one."""
        sets = self.sets()
        for each in sets:
            if each.state == "lost":
                self._add(each.params)
        if len(sets) < self.most and not any(each.state in ("lost", "waiting") for each in sets):
            drawn = draw(self.optuna.get_trials(deepcopy=False), self.space, self.seed)
            self.exhausted = drawn is None
            if drawn:
                self._add(drawn)
        return [each for each in self.sets() if each.state == "waiting"]

    def _add(self, params: dict[str, Any]) -> None:
        from optuna.trial import TrialState, create_trial

        distributions = {parameter.key: parameter.distribution() for parameter in self.space}
        trial = create_trial(state=TrialState.WAITING, params=params, distributions=distributions)
        self.storage.create_new_trial(self.id, trial)

    def _take(self, waiting: ParameterSet) -> "Claim | None":
        """Claim the trial of a set; None if another worker was quicker."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        assert waiting.current
        trial = self.storage.get_trial_id_from_study_id_trial_number(self.id, waiting.current.number)
        self.storage.record_heartbeat(trial)  # first: a worker that dies right after its claim is noticed too
        with suppress(UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(trial, TrialState.RUNNING):
                return Claim(self, trial, waiting.number, waiting.params)
        return None


@dataclass
class Claim:
    """A trial that this worker trains.

    Attributes:
        study: of its system.
        id: of the trial in the storage.
        number: names the run folder; the same in all trials of a set.
        params: the parameters by their keys.
    """

    study: Study
    id: int
    number: int
    params: dict[str, Any]

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Give signs of life meanwhile."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.study.storage.get_heartbeat_interval()):
                with suppress(SQLAlchemyError, StorageInternalError):  # the next one may get through
                    self.study.storage.record_heartbeat(self.id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def report(self, step: int, loss: float) -> bool:
        """Store a validation loss. Returns whether it is worse than the median of the others at this step.

        Raises:
            TakenOver: the trial is another worker's now.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.pruners import MedianPruner

        try:
            self.study.storage.set_trial_intermediate_value(self.id, step, loss)
        except UpdateFinishedTrialError:
            raise TakenOver from None
        return MedianPruner().prune(self.study.optuna, self.study.storage.get_trial(self.id))

    def end(self, state: str, loss: float | None = None, **attributes: int) -> None:
        """End the trial.

        Args:
            state: of Optuna: COMPLETE, PRUNED or FAIL.
            loss: of a complete one.
            attributes: FAILED or DIVERGED. A failed trial without them is given to the next worker.

        Raises:
            TakenOver: the trial is another worker's now.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            for name, value in attributes.items():
                self.study.storage.set_trial_user_attr(self.id, name, value)
            self.study.storage.set_trial_state_values(self.id, TrialState[state], None if loss is None else [loss])
        except UpdateFinishedTrialError:
            raise TakenOver from None


def group(trials: Iterable["FrozenTrial"]) -> list[ParameterSet]:
    """The sets of parameters, in the order of their first trials."""
    found: dict[frozenset[Any], list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        found.setdefault(frozenset(trial.params.items()), []).append(trial)
    return [ParameterSet(members) for members in found.values()]


def draw(trials: list["FrozenTrial"], space: list[Parameter], seed: int) -> dict[str, Any] | None:
    """A new set of parameters from those that were tried, by Optuna's TPE; None if there seem to be no others.

    A copy of the study in memory is asked, so that nothing is stored before the set is known.
    """
    import optuna
    from optuna.trial import TrialState

    known = {frozenset(trial.params.items()) for trial in trials}
    distributions = {parameter.key: parameter.distribution() for parameter in space}
    for attempt in range(DRAWS):
        number = zlib.crc32(f"{seed} {len(trials)} {attempt}".encode())
        sampler = optuna.samplers.RandomSampler(number) if attempt else optuna.samplers.TPESampler(seed=number)
        study = optuna.create_study(sampler=sampler)
        study.add_trials([trial for trial in trials if trial.state not in (TrialState.FAIL, TrialState.WAITING)])
        asked = study.ask(distributions).params
        params = {parameter.key: parameter.round(asked[parameter.key]) for parameter in space}
        if frozenset(params.items()) not in known:
            return params
    return None
