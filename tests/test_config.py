"""The command line and the config files: precedence, budgets, and one-line errors with the nearest name."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.config.options import Config
from lm.config.resolve import from_yaml, parse
from lm.files import UserError

ROOT = Path(__file__).parent.parent


def test_defaults_file_and_command_line_in_that_order(tmp_path):
    (tmp_path / "c.yaml").write_text("model:\n  width: 64\n  layers: 5\ntrainer:\n  precision: 32\n")
    config, resume = parse(["--config", str(tmp_path / "c.yaml"), "--model.layers", "7"])
    assert (config.model.width, config.model.layers, config.model.mixer) == (64, 7, "mingru")
    assert config.trainer.precision == 32 and resume is None


def test_two_minutes_are_the_default_and_one_budget_clears_the_other(tmp_path):
    assert parse([])[0].trainer.max_minutes == 2 and parse([])[0].trainer.max_steps is None
    steps = parse(["--trainer.max_steps=50"])[0].trainer
    assert steps.max_steps == 50 and steps.max_minutes is None
    (tmp_path / "c.yaml").write_text("trainer:\n  max_minutes: 4\n")
    steps = parse(["--config", str(tmp_path / "c.yaml"), "--trainer.max_steps", "50"])[0].trainer
    assert steps.max_steps == 50 and steps.max_minutes is None
    saved = parse(["--trainer.max_steps=50"])[0].to_yaml()
    assert parse(["--trainer.max_minutes", "3"], saved)[0].trainer.max_steps is None


def test_a_hybrid_takes_its_number_of_layers_and_attention_its_window_from_the_data():
    config, _ = parse(["--model.mixer", "[mingru, attention, mingru]", "--data.context", "64"])
    assert config.model.mixer == ["mingru", "attention", "mingru"] and config.mixer_name == "mingru+attention"
    assert config.model.options.window == 64
    assert parse([])[0].model.options.window is None


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


BAD = {
    "--modle.width 3": "unknown option --modle.width; did you mean --model.width?",
    "--model.widht=3": "did you mean --model.width?",
    "--model.width x": "model.width: expected a whole number, not x",
    "--model.width 1.5": "model.width: expected a whole number, not 1.5",
    "--model.width 33": "model.width must be even, not 33",
    "--model.mixer mingr": "did you mean mingru?",
    "--model.mixer [mingru]": "model.mixer names 1 layers and model.layers says 3",
    "--trainer.precision 31": "expected auto or 32 or bf16-mixed or 16-mixed, not 31",
    "--config /none.yaml": "/none.yaml",
    "--model.options.expansion x": "model.options.expansion: expected a number, not x",
    "--seed -1": "seed must be at least 0, not -1",
    "--optim.lr nan": "optim.lr",
    "--optim.lr .inf": "optim.lr must be a finite number",
    "--optim.lr 0": "optim.lr must be above 0",
    "--model.dropout 1": "model.dropout must be at least 0 and below 1",
    "--data.context 0": "data.context must be at least 1",
    "--data.batch_size 3 --trainer.accumulate 2": "cannot be cut into 2 equal parts",
    "--trainer.max_steps 5 --trainer.max_minutes 1": "not both",
    "--trainer.max_minutes 0": "trainer.max_minutes must be above 0",
    "--name ../escape": "name '../escape'",
    "--data.sampling streams --trainer.devices 2": "trainer.devices must be 1",
    "--log.wandb maybe": "expected disabled or offline or online, not maybe",
    "stray": "unknown option stray",
}


@pytest.mark.parametrize("words", BAD)
def test_a_mistake_gets_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(words.split())
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error.count("\n") == 1 and BAD[words] in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  widht: 3\n", "unknown key model.widht in the file; did you mean model.width?"),
        ("modle:\n  width: 3\n", "did you mean model?"),
        ("model: 7\n", "model: expected a section of options, not 7"),
        ("}{", "line 1: not YAML"),
        ("just words", "expected lines `key: value`, not just words"),
        ("model: !!python/object/apply:os.system ['false']\n", "line 1: tags ("),
    ],
)
def test_a_bad_file_gets_one_line(text, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit:
        parse(["--config", str(tmp_path / "c.yaml")])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and message in error
    with pytest.raises(UserError):
        from_yaml(text)


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
