"""The trials of a system: which is trained next, by whom, and what becomes of those of dead workers."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import sqlalchemy

from lm.analysis.search.space import read_space
from lm.analysis.search.storage import open_storage
from lm.analysis.search.study import DIVERGED, FAILED, Study, TakenOver, draw, group

SPACE = read_space(["optim.muon_lr=log(0.005,0.05)", "model.layers=1..8"])


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'study.sqlite'}"


@pytest.fixture
def worker(url):
    """Makes what another worker has: a study over connections of its own."""
    with ExitStack() as opened:
        yield lambda most=3, space=SPACE: Study(opened.enter_context(open_storage(url)), "study", space, most, seed=1)


def silence(url) -> None:
    """Let all heartbeats be long ago."""
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00.000000'"))


def states(study: Study) -> list[str]:
    return [each.state for each in study.sets()]


def test_two_workers_share_the_trials(worker):
    first, second = worker(), worker()
    claims = [first.claim(), second.claim(), first.claim()]
    assert [claim.number for claim in claims] == [0, 1, 2] and second.claim() is None
    assert not first.is_over and states(second) == ["running"] * 3
    claims[0].end("COMPLETE", 1.5)
    claims[1].end("PRUNED")
    claims[2].end("PRUNED", **{DIVERGED: 1})
    assert second.is_over and second.claim() is None and states(first) == ["complete", "pruned", "diverged"]
    assert first.sets()[0].loss == 1.5
    assert worker(most=4).claim().number == 3


def test_workers_that_claim_at_the_same_moment_get_different_trials(worker):
    studies = [worker(most=6) for _ in range(3)]

    def claim_all(study: Study) -> list[int]:
        claims = [study.claim() for _ in range(2)]
        return [claim.number for claim in claims if claim]

    with ThreadPoolExecutor(3) as pool:
        numbers = [number for found in pool.map(claim_all, studies) for number in found]
    assert len(numbers) == len(set(numbers))
    sets = studies[0].sets()
    assert {each.number for each in sets if each.state == "running"} == set(numbers)
    assert len({tuple(each.params.items()) for each in sets}) == len(sets) == 6


def test_the_trial_of_a_dead_worker_goes_on_with_the_same_number_and_parameters(worker, url):
    first, second = worker(), worker()
    lost = first.claim()
    assert second.claim().number == 1
    silence(url)
    with lost.heartbeats():  # the first beat comes after an interval: this one is silent
        found = second.claim()
    assert (found.number, found.params) == (lost.number, lost.params) and found.id != lost.id
    with pytest.raises(TakenOver):
        lost.report(10, 2.0)
    with pytest.raises(TakenOver):
        lost.end("COMPLETE", 1.0)
    found.end("COMPLETE", 1.5)
    assert second.sets()[0].loss == 1.5 and len(second.sets()[0].trials) == 2
    silence(url)
    assert second.claim().number == 1  # its other trial was silent too


def test_heartbeats_keep_a_trial(worker, url, monkeypatch):
    monkeypatch.setattr("lm.analysis.search.storage.HEARTBEAT", 1)
    first, second = worker(most=1), worker(most=1)
    claim = first.claim()
    silence(url)
    monkeypatch.setattr(first.storage, "get_heartbeat_interval", lambda: 0.01)
    with claim.heartbeats():
        for _ in range(200):
            with sqlalchemy.create_engine(url).begin() as connection:
                (beat,) = connection.execute(sqlalchemy.text("SELECT heartbeat FROM trial_heartbeats")).one()
            if not beat.startswith("2020"):
                break
    assert second.claim() is None and states(second) == ["running"]
    claim.report(10, 2.0)


def test_a_stopped_trial_is_next_and_a_failed_one_is_not_repeated_for_ever(worker):
    study = worker()
    stopped = study.claim()
    stopped.end("FAIL")
    assert states(study) == ["lost"]
    again = study.claim()
    assert again.number == stopped.number
    again.end("FAIL", **{FAILED: 1})
    assert states(study) == ["failed"] and study.claim().number == 2  # 1 was that of the second attempt
    for _ in range(3):  # errors of the machine
        study.claim().end("FAIL", **{FAILED: 2})
    assert states(study) == ["failed", "running", "failed"]


def test_two_trials_of_the_same_parameters_are_one_set(worker):
    first, second = worker(), worker()
    params = {"optim.muon_lr": 0.01, "model.layers": 2}
    first._add(params)
    second._add(params)
    assert first.claim().number == 0 and second.claim().number == 2 and len(first.sets()) == 2


def test_a_small_space_is_exhausted(worker):
    study = worker(most=9, space=read_space(["model.layers=1..2", "optim.schedule=linear|cosine"]))
    for _ in range(4):
        study.claim().end("COMPLETE", 1.0)
    assert study.claim() is None and study.exhausted and study.is_over
    assert {tuple(each.params.values()) for each in study.sets()} == {
        (n, s) for n in (1, 2) for s in ("linear", "cosine")
    }


def test_draws_follow_from_trials_and_seed_and_learn_from_losses(worker):
    study = worker(most=20)
    for _ in range(18):
        claim = study.claim()
        rate, layers = claim.params.values()
        claim.end("COMPLETE", abs(layers - 4) + rate)
    trials = study.optuna.get_trials()
    assert draw(trials, SPACE, 1) == draw(trials, SPACE, 1) != draw(trials, SPACE, 2)
    late = [each.params["model.layers"] for each in study.sets()[12:]]
    assert sum(3 <= layers <= 5 for layers in late) > len(late) / 2
    assert [each.number for each in group(reversed(trials))] == list(range(18))


def test_pruned_are_those_worse_than_the_median(worker):
    study = worker(most=9)
    for loss in (1.0, 1.1, 1.2, 1.3, 1.4):
        claim = study.claim()
        assert not claim.report(10, loss)
        claim.end("COMPLETE", loss)
    assert study.claim().report(10, 1.5) and not study.claim().report(10, 1.15)
