"""The run folder: the only interface between training and everything that reads its results.

runs/<name>/
  config.yaml        the resolved configuration
  summary.json       status, parameters, best and final losses, peak memory, characters/s
  metrics.csv        a row per logged step and per validation (`lm.runs.metrics`)
  samples.jsonl      step, prompt, text
  tokenizer.json     a `tokenizers` file
  environment.json   versions, processor, command, checksum of the corpus; the same again for each resumption, with the
                     options that were changed
  checkpoints/       best.ckpt last.ckpt previous.ckpt (`lm.runs.checkpoint`); with optim.cycles, cycle1.ckpt ...
  wandb/             the files of Weights & Biases, unless log.wandb is disabled
  tensorboard/       those of TensorBoard, with log.tensorboard
  .lock              locked by the process that trains

Training may be killed at any moment, so each file is either replaced atomically or only appended to, and a checkpoint
records the sizes of the appended ones.
"""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lm.config.fields import nearest
from lm.config.options import Config
from lm.config.resolve import from_yaml
from lm.config.strict_yaml import LARGEST
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError, acquire_lock, alias, atomic_write, is_abandoned, read_bytes, read_text, writing
from lm.runs.checkpoint import APPENDED, CheckpointInfo, read_checkpoint
from lm.runs.environment import environment
from lm.runs.metrics import HEADER, VALUES, format_row, read_rows


class Run:
    """A run folder, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self._lock: IO[str] | None = None

    @property
    def exists(self) -> bool:
        """Whether there are files of a run. A start that was killed at its first moment leaves hidden files only."""
        if self.path.is_dir():
            return any(not path.name.startswith(".") for path in self.path.iterdir())
        return os.path.lexists(self.path)

    def start(self, config: Config, tokenizer: CharTokenizer, digest: str = "") -> None:
        """Make the folder of a new run, and lock it.

        Args:
            digest: checksum of the text to train on; kept in environment.json.

        Raises:
            UserError: it cannot be made, or is another run's.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        if self.exists:
            raise UserError(f"{self.path} exists already; choose another --name, or go on with --resume")
        self._write_files(config, tokenizer, environment(digest), None)

    def remove(self) -> None:
        """Remove the folder of a run that has not begun to train."""
        shutil.rmtree(self.path, ignore_errors=True)

    def resume(
        self,
        config: Config,
        tokenizer: CharTokenizer,
        saved: CheckpointInfo | None,
        changed: dict[str, Any],
        digest: str = "",
    ) -> None:
        """Lock the folder, reset it to a checkpoint (None: to the start), and repair what a crash left incomplete.

        Args:
            changed: the options that differ from before, {name: [before, now]}; kept in environment.json.
            digest: as in `start`.
        """
        self.lock()
        if saved is not None and saved.path.name != "last.ckpt":
            self._replace_damaged(saved.path)
        history = self._read_json("environment.json") or environment(digest)
        now = {"step": saved.step if saved else 0, "changed": changed, **environment(digest)}
        history["resumed"] = [*_resumptions(history), now]
        self._write_files(config, tokenizer, history, saved)

    def _write_files(
        self, config: Config, tokenizer: CharTokenizer, history: dict[str, Any], saved: CheckpointInfo | None
    ) -> None:
        """Write everything but checkpoints. The configuration comes first: with it, a folder can be resumed."""
        self.write("config.yaml", config.to_yaml())
        with writing(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
        self.write("tokenizer.json", tokenizer.to_json())
        self.write("environment.json", json.dumps(history, indent=2) + "\n")
        for name in APPENDED:
            lines = self._whole_lines(name, saved.sizes[name] if saved else 0)
            self.write(name, lines or (HEADER if name == "metrics.csv" else ""))
        self.update_summary(status="running")

    def _replace_damaged(self, path: Path) -> None:
        """Let a checkpoint take the place of last.ckpt, which is damaged, and of best.ckpt if that is damaged too."""
        alias(path, "last.ckpt")
        best = self.checkpoints / "best.ckpt"  # may be the damaged one under another name
        try:
            read_checkpoint(best)
        except UserError:
            best.unlink(missing_ok=True)

    def lock(self) -> None:
        """Keep other trainers out until `unlock` or the end of this process, even if it is killed.

        Files that a killed trainer left half written are removed: whoever holds the lock is the only writer.

        Raises:
            UserError: another process has locked it.
        """
        if self._lock is not None:
            return
        try:
            with writing(self.path / ".lock"):
                self._lock = acquire_lock(self.path / ".lock")
                for part in (*self.path.glob(".*.part"), *self.checkpoints.glob(".*.part")):
                    part.unlink()
        except UserError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            owner = error.__cause__.args[0]
            raise UserError(
                f"{self.path} is being trained by {owner}; stop that first, or choose another --name"
            ) from None

    def unlock(self) -> None:
        """Let others train this run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def is_abandoned(self) -> bool:
        """Whether the process that trained this run has ended: its lock file is there, and nobody has locked it."""
        return is_abandoned(self.path / ".lock")

    @classmethod
    def find(cls, name: str, runs: str = "runs", having: str = "config.yaml") -> "Run":
        """Open a run by its name or path; an empty name means the newest.

        Args:
            having: the newest of those that have such a file, if there are any.

        Raises:
            UserError: there is none.
        """
        known = list(Path(runs).glob("*/config.yaml"))
        if not name and known:
            fit = [file for file in known if any(file.parent.glob(having))]
            return cls(max(fit or known, key=lambda file: file.stat().st_mtime).parent)
        if not name:
            raise UserError(f"no run in {runs}/ yet; make one with: char-lm train")
        for path in (Path(name), Path(runs) / name):
            if os.path.isfile(path / "config.yaml"):  # False too for a name that no file system takes
                return cls(path)
        hint = nearest(name, [file.parent.name for file in known])
        raise UserError(f"no run {name}, neither as a path nor in {runs}/{hint}")

    def newest_checkpoint(self) -> CheckpointInfo | None:
        """The checkpoint to resume from, or None before the first; a damaged one falls back to the one before it.

        So does one that knows of more rows than there are: the missing rows are made again. Prints that on stderr.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        problems, lacking = [], []
        for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
            if not (self.checkpoints / name).exists():
                continue
            try:
                saved = CheckpointInfo.read(self.checkpoints / name)
            except UserError as error:
                problems.append(str(error))
                continue
            short = [name for name, size in saved.sizes.items() if self._size(name) < size]
            if not short:
                for problem in problems:
                    print(f"{problem}; falling back to {saved.path.name}, step {saved.step}", file=sys.stderr)
                return saved
            problems.append(f"{self.path / short[0]} has lost rows that {saved.path.name} knows of")
            lacking.append(saved)
        if lacking:
            place = f"{lacking[0].path.name}, step {lacking[0].step}"
            print(f"{problems[0]}; going on without them from {place}", file=sys.stderr)
            return lacking[0]
        if problems:
            raise UserError(f"{problems[0]}; no whole checkpoint is left here: start a new run")
        return None

    def name_best(self, saved: CheckpointInfo) -> None:
        """Make best.ckpt a name of the newest checkpoint if it is the best: a crash may have prevented that."""
        if saved.path.name == "last.ckpt" and 0 < saved.best_step == saved.step:
            alias(saved.path, "best.ckpt")

    def write(self, name: str, text: str | bytes) -> None:
        """Replace a file of the folder atomically."""
        atomic_write(self.path / name, text)

    def config(self) -> Config:
        """The resolved configuration of the run."""
        path = self.path / "config.yaml"
        return from_yaml(read_text(path, LARGEST), path)

    def tokenizer(self) -> CharTokenizer:
        """The tokenizer of the run's corpus."""
        return CharTokenizer.load(self.path / "tokenizer.json")

    def fits(self, tokenizer: CharTokenizer) -> bool:
        """Whether the run has this vocabulary. A run that was killed at its very start has none."""
        return not (self.path / "tokenizer.json").exists() or self.tokenizer().characters == tokenizer.characters

    def corpus_digest(self) -> str:
        """Checksum of the text that the run was last trained on; empty if it is unknown."""
        history = self._read_json("environment.json")
        known = [entry.get("corpus") for entry in (history, *_resumptions(history)) if isinstance(entry, dict)]
        return next((digest for digest in reversed(known) if isinstance(digest, str) and digest), "")

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add a row to metrics.csv."""
        self._append("metrics.csv", format_row(row))

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        """Add a line to samples.jsonl."""
        line = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
        self._append("samples.jsonl", line + "\n")

    def _append(self, name: str, text: str) -> None:
        """Append with one write, so that readers and crashes see whole lines."""
        left = text.encode()
        with writing(self.path / name), (self.path / name).open("ab", buffering=0) as file:
            while left:  # a full disk takes a part of it before it refuses
                left = left[file.write(left) :]

    def sync(self) -> dict[str, int]:
        """Flush the appended files to the disk, so that they outlast a power loss. Returns their sizes."""
        for name in APPENDED:
            with writing(self.path / name), (self.path / name).open("ab") as file:
                os.fsync(file.fileno())
        return {name: self._size(name) for name in APPENDED}

    def _size(self, name: str) -> int:
        with suppress(OSError):
            return (self.path / name).stat().st_size
        return 0

    def _whole_lines(self, name: str, size: int) -> bytes:
        """The complete lines in the first bytes of a file; nothing if there is no such file."""
        with suppress(UserError):
            text = read_bytes(self.path / name)[:size]
            return text[: text.rfind(b"\n") + 1]
        return b""

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; {} if there is none."""
        return self._read_json("summary.json")

    def update_summary(self, **values: Any) -> None:
        """Set entries of summary.json."""
        self.write("summary.json", json.dumps(self.summary() | values, indent=2) + "\n")

    def _read_json(self, name: str) -> dict[str, Any]:
        with suppress(UserError, ValueError, RecursionError):
            value = json.loads(read_text(self.path / name, LARGEST))
            return value if isinstance(value, dict) else {}
        return {}

    def losses_at(self, step: int) -> dict[str, float]:
        """The results of the validation at a step, {"val/loss": 1.5, ...}; {} if there was none."""
        with suppress(UserError):
            for row in read_rows(read_text(self.path / "metrics.csv"))[0]:
                if row["step"] == step and "val/loss" in row:
                    return {name: row[name] for name in VALUES if name.startswith("val/") and name in row}
        return {}


def _resumptions(history: dict[str, Any]) -> list[Any]:
    """The entries of environment.json for each time the run was resumed."""
    resumed = history.get("resumed")
    return resumed if isinstance(resumed, list) else []
