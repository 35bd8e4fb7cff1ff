"""Damage run folders at random, and read them in every way: `python -m tests.harness.fuzz --minutes 10`.

Each input is a run folder or an export with one to four things wrong. Reading it must succeed or raise UserError with
one printable line; anything else is a bug: its seed is printed and its folder kept. The page, the tables and the
answers of --serve must be made of whatever was read, and hold no markup and no control character of it.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from lm.compare import table, terminal
from lm.compare.main import as_csv
from lm.compare.page import encode, payload
from lm.compare.runs import Reader
from lm.config.options import Config, DataConfig
from lm.corpora.batches import Windows
from lm.corpora.corpus import load_corpus
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError
from lm.model import LanguageModel
from lm.report.html import embed
from lm.runs.checkpoint import APPENDED, read_checkpoint
from lm.runs.export import export
from lm.runs.folder import Run
from lm.runs.load import load_with_config
from lm.runs.metrics import AXES, VALUES
from lm.training.loss import windowed_loss

HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;x\x07",
    "../../../etc/passwd",
    "\0",
    "\u202e",
    "\ud800",
    "{{}}",
    "'",
]
NUMBERS = ["-1", "0", "1e999", ".nan", ".inf", "9" * 40, "9" * 5000, "1e-320", "true", "null", "~", "''", "[]", "{}"]
TEXT = ("config.yaml", "summary.json", "metrics.csv", "samples.jsonl", "tokenizer.json", "environment.json")


def make_run(folder: Path) -> Path:
    """A whole run with a tiny model, of files as training writes them."""
    config = Config(name="good", data=DataConfig(corpus=str(folder.parent / "corpus.txt"), context=8))
    config.model.width, config.model.layers = 4, 1
    tokenizer = CharTokenizer("abc de\n")
    (folder / "checkpoints").mkdir(parents=True)
    Path(config.data.corpus).write_text("abc de\n" * 60)
    run = Run(folder)
    run.write("config.yaml", config.to_yaml())
    run.write("tokenizer.json", tokenizer.to_json())
    run.write("environment.json", json.dumps({"processor": "fast", "command": ["train.py"]}))
    best = {"val/loss": 1.5, "val/loss_streaming": 1.4}
    run.write("summary.json", json.dumps({"status": "finished", "mixer": "mingru", "parameters": 9, "best": best}))
    run.write("metrics.csv", ",".join(AXES + VALUES) + "\n")
    run.write("samples.jsonl", "")
    for step in range(1, 4):
        run.append_metrics(dict.fromkeys(AXES, step) | {"val/loss": 2.0 / step, "train/loss": 2.1 / step})
        run.append_sample(step, "a", "bc\nd")
    weights = {f"model.{k}": v for k, v in LanguageModel(len(tokenizer), config.model).state_dict().items()}
    checkpoint = {
        "state_dict": weights,
        "config": config.to_yaml(),
        "characters": tokenizer.characters,
        "global_step": 3,
        "callbacks": {"Recorder": {"seconds": 3.0, "sizes": dict.fromkeys(APPENDED, 10), "best_step": 3}},
    }
    torch.save(checkpoint, folder / "checkpoints/best.ckpt")
    shutil.copy(folder / "checkpoints/best.ckpt", folder / "checkpoints/last.ckpt")
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def flip(path: Path, chance: random.Random) -> None:
    raw = bytearray(path.read_bytes() or b"\0")
    for _ in range(chance.choice((1, 1, 4, 64))):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    path.write_bytes(raw)


def truncate(path: Path, chance: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: chance.randrange(len(raw) + 1)])


def splice(path: Path, chance: random.Random) -> None:
    raw = path.read_bytes()
    i, j = sorted((chance.randrange(len(raw) + 1), chance.randrange(len(raw) + 1)))
    path.write_bytes(raw[:i] + raw[i:j] * chance.choice((0, 2, 3)) + raw[j:])


def insert(path: Path, chance: random.Random) -> None:
    raw = path.read_bytes()
    at = chance.randrange(len(raw) + 1)
    new = chance.choice(
        [*HOSTILE, *NUMBERS, "[" * 20_000, '{"a":' * 5000, "&a [*a]", "!!python/name:os.system", "\n", ","]
    )
    path.write_bytes(raw[:at] + new.encode("utf-8", "surrogatepass") + raw[at:])


def garbage(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice((b"", b"\xff\xfe", b"null", b"[]", b"{}", b"7", chance.randbytes(200))))


def swap(path: Path, chance: random.Random) -> None:
    other = chance.choice(files_of(path.parents[1] if path.parent.name == "checkpoints" else path.parent))
    shutil.copy(other, path) if other != path else path.write_bytes(b"")


def replace(path: Path, chance: random.Random) -> None:
    """Put something in its place that is not a plain file, or nothing."""
    path.unlink()
    kind = chance.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.symlink_to("/dev/zero")


def revalue(path: Path, chance: random.Random) -> None:
    """A word or number of a text file becomes something else."""
    with contextlib.suppress(UnicodeDecodeError):
        words = path.read_text(encoding="utf-8").split(" ")
        words[chance.randrange(len(words))] = chance.choice([*NUMBERS, *HOSTILE]) + chance.choice(("", "\n", ",\n"))
        path.write_bytes(" ".join(words).encode("utf-8", "surrogatepass"))


def structure(path: Path, chance: random.Random) -> None:
    """A value inside a JSON or YAML file, or a checkpoint, becomes one of another kind: the file itself stays whole."""
    odd = chance.choice([None, True, -1, 10**400, 1e999, [], {}, "x", [[]], {"a": {"b": []}}, *HOSTILE, "9" * 5000])
    with contextlib.suppress(Exception):
        if path.suffix == ".ckpt":
            record = torch.load(path, weights_only=True)
            poke(record, torch.zeros(chance.choice(((), (0,), (3, 3)))) if chance.random() < 0.3 else odd, chance)
            torch.save(record, path)
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            records = [json.loads(line) for line in lines]
            poke(chance.choice(records), odd, chance)
            path.write_text("\n".join(map(json.dumps, records)) + "\n")
        elif path.suffix == ".yaml":
            record = yaml.safe_load(path.read_text())
            poke(record, odd, chance)
            path.write_text(yaml.safe_dump(record, allow_unicode=True))


def poke(record: object, odd: object, chance: random.Random) -> None:
    """Replace, add or remove somewhere inside."""
    while isinstance(record, dict) and record:
        key = chance.choice(list(record))
        if isinstance(record[key], dict) and chance.random() < 0.8:
            record = record[key]
            continue
        if chance.random() < 0.7:
            record[key] = odd
        elif chance.random() < 0.5:
            del record[key]
        else:
            record[chance.choice(["x", "version", 7, *HOSTILE[:3]])] = odd
        return


DAMAGES = (flip, truncate, splice, insert, garbage, swap, replace, revalue, revalue, structure, structure, structure)


def damage(folder: Path, chance: random.Random) -> list[str]:
    """One to four damages; returns what was done."""
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        files = files_of(folder)
        if files:
            path, how = chance.choice(files), chance.choice(DAMAGES)
            how(path, chance)
            done.append(f"{how.__name__} {path.name}")
    return done


def compare_all(folder: Path) -> None:
    """Everything that `char-lm compare` makes of a folder."""
    runs = Reader([str(folder)]).read()
    groups, target = table.group(runs), table.default_target(runs, "val/loss")
    notes = table.warnings(runs, [])
    everything = table.as_json(runs, groups, "val/loss", target, notes)
    data = payload(runs, "val/loss", target, []) | {"runs": [encode(run, 1) for run in runs]}
    json.dumps([everything, data], allow_nan=False).encode()
    assert "<" not in embed(data), "markup in the page"
    as_csv(everything["runs"]) if runs else None
    lines = [*terminal.results(groups), *notes] if runs else []
    for metric, axis in (("val/loss", "step"), ("train/loss", "flops")):
        lines += terminal.curves(groups, metric, axis) if runs else []
    assert all(line.isprintable() for line in lines), "control characters on the terminal"


def load_and_use(folder: Path) -> None:
    """As `char-lm generate` and `char-lm evaluate` load it; a few characters are scored."""
    model, tokenizer, config = load_with_config(folder)
    ids = tokenizer.encode("abc de\nabc")
    assert all(0 <= i < len(tokenizer) for i in ids) and len(Windows(ids, 4)[0][0])
    windowed_loss(model, ids, min(config.data.context, 4))


def evaluate_data(folder: Path) -> None:
    """What `char-lm evaluate` does before it scores, for local corpora."""
    config = Run(folder).config()
    if config.data.corpus.endswith("corpus.txt"):
        load_corpus(config.data)


def export_again(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        export(folder, Path(out) / "exported")


READERS: dict[str, Callable[[Path], object]] = {
    "find": lambda folder: Run.find(str(folder)),
    "newest": lambda folder: Run.find("", str(folder.parent)),
    "config": lambda folder: Run(folder).config(),
    "summary": lambda folder: Run(folder).summary(),
    "tokenizer": lambda folder: Run(folder).tokenizer(),
    "losses_at": lambda folder: Run(folder).losses_at(3),
    "last.ckpt": lambda folder: read_checkpoint(folder / "checkpoints/last.ckpt"),
    "newest_checkpoint": lambda folder: Run(folder).newest_checkpoint(),
    "load": load_and_use,
    "evaluate": evaluate_data,
    "export": export_again,
    "compare": compare_all,
}


def attempt(read: Callable[[Path], object], folder: Path) -> str:
    """`success`, or `refused` with one good line; everything else is raised."""
    signal.alarm(120)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            read(folder)
        return "success"
    except UserError as error:
        assert str(error) and str(error).isprintable() and len(str(error)) < 1000, f"a bad line: {error!r}"
        return "refused"
    finally:
        signal.alarm(0)


def too_long(number: int, frame: object) -> None:
    raise TimeoutError("two minutes, and no end")


def fuzz(seconds: float, seed: int, keep: Path, most: int = 10**9) -> tuple[int, Counter[str], list[str]]:
    """Try inputs until so much processor time is used. Returns their number, the outcomes, and the bugs."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    bugs: list[str] = []
    outcomes: Counter[str] = Counter()
    end, count = time.process_time() + seconds, 0
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(scratch)
        os.environ["XDG_CACHE_HOME"], os.environ["HF_HUB_OFFLINE"] = f"{place}/cache", "1"
        originals = [make_run(place / "original/run"), place / "original/exported"]
        export(originals[0], originals[1])
        load_and_use(originals[0])  # imports everything, which on a busy machine takes long
        while time.process_time() < end and count < most:
            chance = random.Random(f"{seed} {count}")
            folder = place / f"runs{count}/damaged"
            shutil.copytree(chance.choice(originals), folder)
            done = damage(folder, chance)
            for name, read in READERS.items():
                try:
                    outcomes[attempt(read, folder)] += 1
                except Exception:
                    bugs.append(f"seed {seed} input {count} ({', '.join(done)}), {name}:\n{traceback.format_exc()}")
                    with contextlib.suppress(OSError, shutil.Error):
                        shutil.copytree(folder, keep / f"{seed}-{count}", symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder.parent)
            count += 1
    return count, outcomes, bugs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of processor time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "char-lm-fuzz", help="folder for bugs"
    )
    options = parser.parse_args()
    count, outcomes, bugs = fuzz(60 * options.minutes, options.seed, options.keep)
    kinds = Counter(bug.strip().splitlines()[-1] for bug in bugs)
    for last in kinds:
        print(next(bug for bug in bugs if bug.strip().splitlines()[-1] == last))
    found = f"{dict(outcomes)}, {len(bugs)} bugs of {len(kinds)} kinds"
    print(f"{count:,} folders, {sum(outcomes.values()):,} readings: {found}")
    if bugs:
        print(f"their folders are in {options.keep}")
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
