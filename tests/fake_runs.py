"""Run folders for tests, with plausible curves and no training. `python tests/fake_runs.py FOLDER` makes twenty."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from lm.config.options import Config, ModelConfig
from lm.runs.metrics import AXES, HEADER, VALUES

SPEEDS = {"mingru": 2.5, "minlstm": 2.2, "attention": 1.0, "gru": 1.6, "lstm": 1.4, "mamba": 2.3}
"""How fast a mixer learns here, in steps."""
SAMPLE = "ROMEO:\nWhat light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n"


def fake_run(
    folder: Path,
    name: str,
    mixer: str = "mingru",
    seed: int = 1,
    rows: int = 200,
    validations: int = 10,
    text: str = SAMPLE,
    status: str = "finished",
    **options: Any,
) -> Path:
    """A run of `rows` logged steps, ten steps apart. `options` change its configuration: data={"corpus": ...}."""
    path = empty_run(folder, name, mixer, seed, status, **options)
    lines, samples = [HEADER], []
    noise = random.Random(f"{name}{seed}")
    every = max(1, rows // validations) if validations else rows + 1
    best = math.inf
    for row in range(1, rows + 1):
        loss = curve(mixer, row * 10, rows * 10) + 0.01 * seed
        axes = axes_of(mixer, row * 10)
        norm, speed = 0.3 + noise.random() / 3, 30_000 * noise.uniform(0.8, 1)
        training = {"train/loss": loss + noise.gauss(0, 0.05), "lr": 3e-3 * (1 - row / rows)}
        lines.append(csv_row(axes, training | {"grad_norm": norm, "chars_per_second": speed}) + "\n")
        if row % every == 0:
            value = loss + 0.1 + noise.gauss(0, 0.004)
            best = min(best, value)
            losses = {"val/loss": value, "val/loss_streaming": value - 0.02}
            units = {"val/bpc": value / math.log(2), "val/perplexity": math.exp(value)}
            lines.append(csv_row(axes, losses | units) + "\n")
            garbled = "".join(c if noise.random() < row / rows else noise.choice("etaoin shrdlu") for c in text)
            samples.append(json.dumps({"step": row * 10, "prompt": "\n", "text": garbled if text == SAMPLE else text}))
    (path / "metrics.csv").write_text("".join(lines), encoding="utf-8")
    (path / "samples.jsonl").write_text("".join(sample + "\n" for sample in samples), encoding="utf-8")
    losses = {"val/loss": best, "val/loss_streaming": best - 0.02} if math.isfinite(best) else {}
    change_summary(path, step=rows * 10, best=losses)
    return path


def empty_run(
    folder: Path, name: str, mixer: str = "mingru", seed: int = 1, status: str = "finished", **options: Any
) -> Path:
    """A run folder with a configuration and a summary."""
    path = folder / name
    path.mkdir(parents=True)
    config = yaml.safe_load(Config(name=name, seed=seed, runs=str(folder), model=ModelConfig(mixer="mingru")).to_yaml())
    config["model"]["mixer"] = mixer
    for section, values in options.items():
        config[section] |= values
    (path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    parameters = 700_000 + 1000 * len(mixer)
    (path / "summary.json").write_text("{}")
    change_summary(path, status=status, mixer=mixer, parameters=parameters, device="cpu")
    change_summary(path, chars_per_second=28_000.0, peak_memory_mb=812.25)
    return path


def run_of(folder: Path, name: str, rows: dict[int, dict[str, float] | float], **options: Any) -> Path:
    """A run with these rows by step, a number being a windowed loss; 100 characters a step, 2 steps a second."""
    path = empty_run(folder, name, **options)
    (path / "metrics.csv").write_text(HEADER)
    for step, values in rows.items():
        append_row(path, step, **(values if isinstance(values, dict) else {"val/loss": values}))
    return path


def append_row(path: Path, step: int, **values: float) -> None:
    """Add a row to a run's metrics.csv: 100 characters a step, 2 steps a second."""
    with (path / "metrics.csv").open("a") as file:
        file.write(csv_row((step, step * 100, step / 2, step * 1e9), values) + "\n")


def change_summary(path: Path, **values: Any) -> None:
    """Change entries of a run's summary.json."""
    file = path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values), encoding="utf-8")


def curve(mixer: str, step: float, last: float) -> float:
    """A training loss: from 4.2 towards 1.4, faster for some."""
    return 1.4 + 2.8 * math.exp(-3.2 * (SPEEDS.get(mixer, 1.5) * step / last) ** 0.5)


def axes_of(mixer: str, step: int) -> tuple[float, ...]:
    """step, chars, train_seconds, flops"""
    return step, step * 4096, round(step * 0.15 * (1 + 0.1 * len(mixer)), 3), step * 4096 * 4.2e6


def csv_row(axes: tuple[float, ...], values: dict[str, float]) -> str:
    """A line of metrics.csv."""
    assert len(axes) == len(AXES) and values.keys() <= {*VALUES}
    return ",".join([*(f"{x:.12g}" for x in axes), *(f"{values[v]:.6g}" if v in values else "" for v in VALUES)])


if __name__ == "__main__":
    for number in range(20):
        kind = list(SPEEDS)[number % 5]
        fake_run(Path(sys.argv[1]), f"{kind}-s{number // 5 + 1}", kind, number // 5 + 1, rows=5000, validations=20)
