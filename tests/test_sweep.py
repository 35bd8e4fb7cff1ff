"""The sweep: every run once, finished ones skipped, broken ones resumed, another configuration refused."""

import json

import pytest

from lm import sweep
from lm.run import Run
from tests.conftest import SMALL


@pytest.fixture
def run_sweep(tmp_path, corpus, monkeypatch):
    """Calls the sweep with train.py in this process; returns the commands that it ran."""
    import train

    ran = []

    def execute(words):
        ran.append(words[2:])
        return train.main(words[2:])

    monkeypatch.setattr(sweep, "execute", execute)

    def call(*options):
        ran.clear()
        own = ["--mixers", "mingru", "[mingru,attention]", "--seeds", "1", "2", "--runs", str(tmp_path / "sweep")]
        assert sweep.main([*own, "--", *SMALL, "--data.corpus", str(corpus), *options]) == 0
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
    with pytest.raises(SystemExit):
        run_sweep("--trainer.max_steps", "7")
    assert "was made with other options" in capsys.readouterr().err
