"""The run folder: the only interface between training and everything after it, and the only code that knows its files.

runs/<name>/
  config.yaml        the resolved configuration
  summary.json       status, parameters, best and final losses, peak memory, characters/s
  metrics.csv        a row per logged step and per validation
  samples.jsonl      step, prompt, text
  tokenizer.json     a `tokenizers` file
  environment.json   versions, processor, command, digest of the corpus; the same, and what was changed, of each time
                     it was resumed
  checkpoints/       best.ckpt last.ckpt previous.ckpt
  .lock              held by the process that trains

A trainer may die at any moment, so each file is either replaced whole or only appended to; and a checkpoint knows how
long the appended ones were.
"""

import csv
import difflib
import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lm.config.options import Config
from lm.config.resolve import from_yaml
from lm.config.strict_yaml import LARGEST
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError, acquire_lock, alias, atomic_write, is_abandoned, read_bytes, read_text, writing
from lm.runs.checkpoint import Saved, read_checkpoint
from lm.runs.environment import environment
from lm.runs.metrics import APPENDED, VALUES, _csv_row

LOCK = ".lock"


class Run:
    """A run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self.corpus_digest = ""
        """of the text that is trained on, once it is known"""

    @property
    def taken(self) -> bool:
        """Whether a new run would meet another's files here. A start killed in its first moment leaves hidden ones."""
        if self.path.is_dir():
            return any(not path.name.startswith(".") for path in self.path.iterdir())
        return os.path.lexists(self.path)

    def start(self, config: Config, tokenizer: CharTokenizer, corpus: str = "") -> None:
        """Make the folder of a new run, and lock it.

        Args:
            corpus: digest of the text to train on; kept in environment.json.

        Raises:
            UserError: it cannot be made, or is another's.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        if self.taken:
            raise UserError(f"{self.path} exists already; choose another --name, or go on with --resume")
        self.corpus_digest = corpus
        self._fill(config, tokenizer, environment(corpus), None)

    def resume(
        self,
        config: Config,
        tokenizer: CharTokenizer,
        saved: "Saved | None",
        changed: dict[str, Any],
        corpus: str = "",
    ) -> None:
        """Put the folder back to where its checkpoint is, or to the start; what a crash left half made is made whole.

        Args:
            corpus: as in `start`.
            changed: options that are no longer what they were, {name: [before, now]}; kept in environment.json.
        """
        self.lock()
        if saved is not None and saved.path.name != "last.ckpt":
            self._put_back(saved.path)
        self.corpus_digest = corpus
        history = self._json("environment.json") or environment(corpus)
        now = {"step": saved.step if saved else 0, "changed": changed, **environment(corpus)}
        resumed = history.get("resumed")
        history["resumed"] = [*(resumed if isinstance(resumed, list) else []), now]
        self._fill(config, tokenizer, history, saved)

    def _fill(self, config: Config, tokenizer: CharTokenizer, history: dict[str, Any], saved: "Saved | None") -> None:
        """Everything but checkpoints. The configuration comes first: with it, a folder can be resumed."""
        self.write("config.yaml", config.to_yaml())
        with writing(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
            for part in (*self.path.glob(".*.part"), *self.checkpoints.glob(".*.part")):
                part.unlink()
        self.write("tokenizer.json", tokenizer.to_json())
        self.write("environment.json", json.dumps(history, indent=2) + "\n")
        for name, head in APPENDED.items():
            lines = self._lines(name, saved.sizes[name] if saved else 0)
            self.write(name, lines or head.encode())
        self.update_summary(status="running")

    def _put_back(self, path: Path) -> None:
        """Let a checkpoint take the place of the newest, which is damaged, and drop others that are."""
        alias(path, "last.ckpt")
        best = self.checkpoints / "best.ckpt"  # may be the damaged one under another name
        try:
            read_checkpoint(best)
        except UserError:
            best.unlink(missing_ok=True)

    def lock(self) -> None:
        """Keep other trainers out, until `unlock` or the end of this process, however it comes.

        Raises:
            UserError: another one has it.
        """
        if self._lock is not None:
            return
        try:
            with writing(self.path / LOCK):
                self._lock = acquire_lock(self.path / LOCK)
        except UserError as error:
            if isinstance(error.__cause__, BlockingIOError):
                owner = error.__cause__.args[0]
                raise UserError(
                    f"{self.path} is being trained by {owner}; stop that first, or choose another --name"
                ) from None
            raise

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @classmethod
    def find(cls, name: str, runs: str = "runs") -> "Run":
        """Open a run by its name or path; an empty name means the newest.

        Raises:
            UserError: there is none.
        """
        if not name:
            found = sorted(Path(runs).glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
            if not found:
                raise UserError(f"no run in {runs}/ yet; make one with: python train.py")
            return cls(found[-1].parent)
        for path in (Path(name), Path(runs) / name):
            if os.path.isfile(path / "config.yaml"):  # False too for a name that no file system takes
                return cls(path)
        near = difflib.get_close_matches(name, [p.parent.name for p in Path(runs).glob("*/config.yaml")], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no run {name}, neither as a path nor in {runs}/{hint}")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> "Saved | None":
        """The checkpoint to resume from, or None before the first; a damaged one falls back to the one before it.

        So does one that knows of more rows than there are: what it lacks is made again. Says so on stderr.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        problems, lacking = [], []
        for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
            if not (self.checkpoints / name).exists():
                continue
            try:
                saved = Saved.read(self.checkpoints / name)
            except UserError as error:
                problems.append(str(error))
                continue
            short = [name for name, size in saved.sizes.items() if self._size(name) < size]
            if not short:
                _say(*(f"{problem}; falling back to {saved.path.name}, step {saved.step}" for problem in problems))
                return saved
            problems.append(f"{self.path / short[0]} has lost rows that {saved.path.name} knows of")
            lacking.append(saved)
        if lacking:
            _say(f"{problems[0]}; going on without them from {lacking[0].path.name}, step {lacking[0].step}")
            return lacking[0]
        if problems:
            raise UserError(f"{problems[0]}; no whole checkpoint is left here: start a new run")
        return None

    def keep_best(self, saved: "Saved") -> None:
        """Name the newest checkpoint the best, if it is."""
        if saved.path.name == "last.ckpt" and 0 < saved.best_step == saved.step:
            alias(saved.path, "best.ckpt")

    def write(self, name: str, text: str | bytes) -> None:
        """Replace a file of the folder, whole or not at all."""
        atomic_write(self.path / name, text)

    def config(self) -> Config:
        """The resolved configuration of the run."""
        path = self.path / "config.yaml"
        return from_yaml(read_text(path, LARGEST), path)

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer.load(self.path / "tokenizer.json")

    def fits(self, tokenizer: CharTokenizer) -> bool:
        """Whether this tokenizer is the run's. A run killed at its very start has none."""
        return not (self.path / "tokenizer.json").exists() or self.tokenizer().characters == tokenizer.characters

    def corpus(self) -> str:
        """Digest of the text that the run was last trained on; empty where that is not known."""
        history = self._json("environment.json")
        resumed = history.get("resumed")
        entries = [history, *(resumed if isinstance(resumed, list) else [])]
        known = [entry.get("corpus") for entry in entries if isinstance(entry, dict)]
        return next((digest for digest in reversed(known) if isinstance(digest, str) and digest), "")

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add a row to metrics.csv with one write, so that a reader or a crash sees whole rows."""
        cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        self._append("metrics.csv", _csv_row(cells))

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        line = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
        self._append("samples.jsonl", line + "\n")

    def _append(self, name: str, text: str) -> None:
        left = text.encode()
        with writing(self.path / name), (self.path / name).open("ab", buffering=0) as file:
            while left:  # a full disk takes a part of it before it refuses
                left = left[file.write(left) :]

    def settle(self) -> dict[str, int]:
        """Bring the rows and samples so far to the disk, to outlast a power loss. Returns the sizes of their files."""
        for name in APPENDED:
            with writing(self.path / name), (self.path / name).open("ab") as file:
                os.fsync(file.fileno())
        return {name: self._size(name) for name in APPENDED}

    def _size(self, name: str) -> int:
        with suppress(OSError):
            return (self.path / name).stat().st_size
        return 0

    def _lines(self, name: str, size: int) -> bytes:
        """The whole lines in the first bytes of a file; none if it is not there."""
        with suppress(UserError):
            text = read_bytes(self.path / name)[:size]
            return text[: text.rfind(b"\n") + 1]
        return b""

    def summary(self) -> dict[str, Any]:
        """summary.json, or {} before there is one."""
        return self._json("summary.json")

    def _json(self, name: str) -> dict[str, Any]:
        with suppress(UserError, ValueError, RecursionError):
            value = json.loads(read_text(self.path / name, LARGEST))
            return value if isinstance(value, dict) else {}
        return {}

    def losses_at(self, step: int) -> dict[str, float]:
        """The validation's values in the row of metrics.csv of this step; {} if there was no validation."""
        with suppress(UserError, ValueError, KeyError, TypeError, csv.Error):
            for row in csv.DictReader(io.StringIO(read_text(self.path / "metrics.csv"))):
                if row["step"] == str(step) and row["val/loss"]:
                    return {name: float(row[name]) for name in VALUES if name.startswith("val/") and row.get(name)}
        return {}

    def update_summary(self, **values: Any) -> None:
        self.write("summary.json", json.dumps(self.summary() | values, indent=2) + "\n")


def abandoned(folder: Path) -> bool:
    """Whether the trainer of this folder is gone: its lock is there and nobody has it."""
    return is_abandoned(folder / LOCK)


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
