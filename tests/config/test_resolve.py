"""The configuration of a run: precedence, budgets, what depends on what."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.config.options import Config
from lm.config.resolve import Start, from_yaml, parse, read_words
from lm.files import UserError
from tests.commands import ROOT


def test_defaults_file_and_command_line_in_that_order(tmp_path):
    (tmp_path / "c.yaml").write_text("model:\n  width: 64\n  layers: 5\ntrainer:\n  precision: 32\n")
    config = parse(["--config", str(tmp_path / "c.yaml"), "--model.layers", "7"])
    assert (config.model.width, config.model.layers, config.model.mixer) == (64, 7, "mingru")
    assert config.trainer.precision == 32


def test_two_minutes_are_the_default_and_one_budget_clears_the_other(tmp_path):
    assert parse([]).trainer.max_minutes == 2 and parse([]).trainer.max_steps is None
    steps = parse(["--trainer.max_steps=50"]).trainer
    assert steps.max_steps == 50 and steps.max_minutes is None
    (tmp_path / "c.yaml").write_text("trainer:\n  max_minutes: 4\n")
    steps = parse(["--config", str(tmp_path / "c.yaml"), "--trainer.max_steps", "50"]).trainer
    assert steps.max_steps == 50 and steps.max_minutes is None
    saved = parse(["--trainer.max_steps=50"])
    assert parse(["--trainer.max_minutes", "3"], saved).trainer.max_steps is None


def test_a_hybrid_takes_its_number_of_layers_and_attention_its_window_from_the_data():
    config = parse(["--model.mixer", "[mingru, attention, mingru]", "--data.context", "64"])
    assert config.model.mixer == ["mingru", "attention", "mingru"] and config.mixer_name == "mingru+attention"
    assert config.model.options.window == 64
    assert parse([]).model.options.window is None


@given(
    seed=st.integers(0, 2**40),
    lr=st.floats(1e-9, 10),
    name=st.none() | st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9._-]{0,30}\Z"),
    prompt=st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")),
    window=st.none() | st.integers(1, 10**6),
)
def test_yaml_round_trip(seed, lr, name, prompt, window):
    config = Config(seed=seed, name=name)
    config.optim.lr, config.eval.prompt, config.model.options.window = lr, prompt, window
    assert from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle:\n  width: 3\n", "did you mean model?"),
        ("}{", "line 1: not YAML"),
        ("just words", "expected lines `key: value`, not just words"),
        ("version: 0\n", "version: expected a whole number of at least 1, not 0"),
    ],
)
def test_a_bad_file_gets_one_line_that_names_the_file(text, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        parse(["--config", str(path)])
    assert message in str(refused.value) and str(refused.value).startswith(f"{path}: ")
    with pytest.raises(UserError, match=r"^saved: "):
        from_yaml(text, "saved")


def test_later_files_go_over_earlier_ones_and_a_saved_configuration_is_left_as_it_is(tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  width: 64\n  layers: 5\n")
    (tmp_path / "b.yaml").write_text("model:\n  layers: 7\n")
    saved = parse(["--seed", "3"])
    config = parse(["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")], saved)
    assert (config.model.width, config.model.layers, config.seed) == (64, 7, 3)
    assert (saved.model.width, saved.model.layers) == (128, 3)


def test_the_learning_rate_depends_on_the_optimiser():
    assert parse([]).optim.lr == 0.01
    assert parse(["--optim.name", "adamw"]).optim.lr == 0.002
    assert parse(["--optim.name", "adamw", "--optim.lr", "0.5"]).optim.lr == 0.5


def test_the_batch_is_cut_by_devices_nodes_and_accumulation():
    options = ["--data.batch_size", "12", "--trainer.devices", "2", "--trainer.num_nodes", "3"]
    assert parse([*options, "--trainer.accumulate", "2"]).data.batch_size == 12
    with pytest.raises(UserError, match=r"data.batch_size 12 cannot be cut into 18 equal parts"):
        parse([*options, "--trainer.accumulate", "3"])


def test_where_a_command_line_starts():
    start, given = read_words(["--resume", "a", "--allow_changes", "--seed", "4", "--config", "x", "--config", "y"])
    assert start == Start(["x", "y"], "a", True) and given == {"seed": 4}
    assert read_words([]) == (Start([], None, False), {})


@pytest.mark.parametrize("program", ["train.py", "generate.py"])
def test_help_names_every_option_and_needs_no_torch(program):
    code = f"import sys; sys.argv = ['{program}', '--help']; import runpy\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) < 100
    names = [f"--{name}" for name in Config().flat()] if program == "train.py" else ["--prompt", "--top_p", "--seed"]
    assert all(f"  {name} " in result.stdout for name in names)


def test_options_that_an_old_configuration_does_not_know_have_their_old_meaning():
    old = from_yaml("version: 1\noptim: {name: muon}\n")
    assert (old.optim.muon_beta2, old.model.residual_init) == (0.0, 1.0)
    new = from_yaml(Config().to_yaml())
    assert (new.optim.muon_beta2, new.model.residual_init) == (0.95, 0.0)
