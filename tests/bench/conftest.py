"""Fixtures of the benchmarks' tests."""

import json

import pytest

from lm.bench import measure
from lm.mixers.mingru import MinGRU
from tests import commands


@pytest.fixture
def bench(tmp_path, capsys):
    """Run a benchmark; returns its JSON and what it printed."""

    def call(command: str, *options: str):
        path = tmp_path / f"{command}.json"
        placeless = ("parameters", "overhead", "step", "start", "corpus", "context", "split", "onnx", "page")
        where = [] if command in placeless else ["--device", "cpu"]
        assert commands.bench([command, "--quick", "--json", str(path), *where, *options]) == 0
        return json.loads(path.read_text()), capsys.readouterr().out

    return call


@pytest.fixture
def wrong_steps(monkeypatch):
    """A minGRU whose steps are not its forward pass."""
    right = MinGRU.step
    monkeypatch.setattr(MinGRU, "step", lambda self, x, state: right(self, 1.01 * x, state))


def by_name(rows):
    """Rows of a result by the name of their contender."""
    return {row["name"]: row for row in rows}


@pytest.fixture
def timings(monkeypatch):
    """Give contenders these seconds instead of timing them; each runs once all the same."""

    def call(seconds: dict[str, list[float]], default: float = 1.0) -> None:
        def in_turns(calls, *arguments, **options):
            for contender in calls.values():
                contender()
            return {name: seconds.get(name, [default]) for name in calls}

        monkeypatch.setattr(measure, "in_turns", in_turns)

    return call
