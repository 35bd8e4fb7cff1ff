"""Run folders made up for tests: plausible curves without training anything. `python tests/fake_runs.py FOLDER`."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from lm.config.options import Config, ModelConfig
from lm.runs.metrics import AXES, VALUES

SPEEDS = {"mingru": 2.5, "minlstm": 2.2, "attention": 1.0, "gru": 1.6, "lstm": 1.4, "mamba": 2.3}
"""How fast a made-up mixer learns, in steps."""
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
    path = folder / name
    path.mkdir(parents=True)
    config = yaml.safe_load(Config(name=name, seed=seed, runs=str(folder), model=ModelConfig(mixer="mingru")).to_yaml())
    config["model"]["mixer"] = mixer
    for section, values in options.items():
        config[section] |= values
    (path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    lines, samples = [",".join(AXES + VALUES)], []
    noise = random.Random(f"{name}{seed}")
    every = max(1, rows // validations) if validations else rows + 1
    best = math.inf
    for row in range(1, rows + 1):
        loss = curve(mixer, row * 10, rows * 10) + 0.01 * seed
        axes = axes_of(mixer, row * 10)
        norm, speed = 0.3 + noise.random() / 3, 30_000 * noise.uniform(0.8, 1)
        lines.append(
            csv_row(
                axes,
                {
                    "train/loss": loss + noise.gauss(0, 0.05),
                    "lr": 3e-3 * (1 - row / rows),
                    "grad_norm": norm,
                    "chars_per_second": speed,
                },
            )
        )
        if row % every == 0:
            value = loss + 0.1 + noise.gauss(0, 0.004)
            best = min(best, value)
            lines.append(
                csv_row(
                    axes,
                    {
                        "val/loss": value,
                        "val/loss_streaming": value - 0.02,
                        "val/bpc": value / math.log(2),
                        "val/perplexity": math.exp(value),
                    },
                )
            )
            garbled = "".join(c if noise.random() < row / rows else noise.choice("etaoin shrdlu") for c in text)
            samples.append(json.dumps({"step": row * 10, "prompt": "\n", "text": garbled if text == SAMPLE else text}))
    (path / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (path / "samples.jsonl").write_text("".join(sample + "\n" for sample in samples), encoding="utf-8")
    summary = {
        "status": status,
        "mixer": mixer,
        "parameters": 700_000 + 1000 * len(mixer),
        "step": rows * 10,
        "chars_per_second": 28_000.0,
        "best": {"val/loss": best, "val/loss_streaming": best - 0.02} if math.isfinite(best) else {},
        "peak_memory_mb": 812.5,
        "device": "cpu",
    }
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def curve(mixer: str, step: float, last: float) -> float:
    """A training loss: from 4.2 towards 1.4, faster for some."""
    return 1.4 + 2.8 * math.exp(-3.2 * (SPEEDS.get(mixer, 1.5) * step / last) ** 0.5)


def axes_of(mixer: str, step: int) -> tuple[float, ...]:
    """step, chars, train_seconds, flops"""
    return step, step * 4096, round(step * 0.15 * (1 + 0.1 * len(mixer)), 3), step * 4096 * 4.2e6


def csv_row(axes: tuple[float, ...], values: dict[str, float]) -> str:
    """A line of metrics.csv, as the trainer formats it."""
    return ",".join([*(f"{x:.12g}" for x in axes), *(f"{values[v]:.6g}" if v in values else "" for v in VALUES)])


if __name__ == "__main__":
    for number in range(20):
        kind = list(SPEEDS)[number % 5]
        fake_run(Path(sys.argv[1]), f"{kind}-s{number // 5 + 1}", kind, number // 5 + 1, rows=5000, validations=20)
