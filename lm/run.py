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
import fcntl
import io
import json
import os
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lm.config import LARGEST, Config, UserError, from_yaml
from lm.files import read_bytes, read_text
from lm.tokenizer import CharTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from lm.model import LanguageModel

PRETRAINED = Path(__file__).resolve().parent.parent / "data" / "pretrained"
"""The small model that comes with this program, as `lm.export` wrote it."""
AXES = ("step", "chars", "train_seconds", "flops")
"""What every row of metrics.csv has: any of them can be the x-axis."""
VALUES = (
    "train/loss",
    "val/loss",
    "val/loss_streaming",
    "val/bpc",
    "val/perplexity",
    "lr",
    "grad_norm",
    "chars_per_second",
    "val/accuracy",
)
APPENDED = {"metrics.csv": ",".join(AXES + VALUES) + "\n", "samples.jsonl": ""}
"""The files that grow, and what each starts with."""
LOCK = ".lock"
PACKAGES = ("torch", "lightning", "torchmetrics", "tokenizers", "datasets", "wandb", "numpy")


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
        with writing(self.path / LOCK):
            no_link_no_pipe = os.O_NOFOLLOW | os.O_NONBLOCK
            number = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | no_link_no_pipe, 0o644)
            file = os.fdopen(number, "r+")
        for _ in range(20):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)  # a reader may have it for a moment, see `abandoned`
            except OSError:
                break  # a file system without locks
        else:
            file.seek(0)
            owner = file.read(100).strip()
            file.close()
            raise UserError(f"{self.path} is being trained by {owner}; stop that first, or choose another --name")
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}\n")
        file.flush()
        self._lock = file

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
        with replacing(self.path / name) as file:
            file.write(text.encode() if isinstance(text, str) else text)

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


def _csv_row(cells: Mapping[str, object]) -> str:
    line = io.StringIO()
    csv.DictWriter(line, AXES + VALUES, restval="", lineterminator="\n").writerow(cells)
    return line.getvalue()


@dataclass
class Saved:
    """What a checkpoint says of its run: the step, the seconds of training, the sizes of the files that grow, the step
    that was best so far, the digest of the text.
    """

    path: Path
    step: int
    seconds: float
    sizes: dict[str, int]
    best_step: int
    corpus: str = ""

    @classmethod
    def read(cls, path: Path) -> "Saved":
        """Raises UserError: the file is damaged, or not a checkpoint to resume from."""
        checkpoint = read_checkpoint(path)
        callbacks = checkpoint.get("callbacks")
        recorder = callbacks.get("Recorder", {}) if isinstance(callbacks, dict) else {}
        step = checkpoint.get("global_step")
        whole = _has(recorder, {"seconds": float, "sizes": dict, "best_step": int}) and _has(
            recorder["sizes"], dict.fromkeys(APPENDED, int)
        )
        if not whole or not isinstance(step, int):
            raise UserError(f"{path}: not a checkpoint that training can go on from")
        sizes = {name: recorder["sizes"][name] for name in APPENDED}
        corpus = recorder.get("corpus")
        digest = corpus if isinstance(corpus, str) else ""
        return cls(path, step, recorder["seconds"], sizes, recorder["best_step"], digest)


def abandoned(folder: Path) -> bool:
    """Whether the trainer of this folder is gone: its lock is there and nobody has it."""
    with suppress(OSError):
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        finally:
            os.close(file)
    return False


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system has against writing there, as one line.

    Raises:
        UserError: the disk is full, the folder read-only, ...
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path, previous: str | None = None) -> Iterator[IO[bytes]]:
    """A file to write in. At any moment, a power loss included, `path` is the old file or the new one, whole.

    Args:
        path: what it will be.
        previous: a name under which the old file stays.

    Raises:
        UserError: it cannot be written; `path` is what it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            part.unlink(missing_ok=True)  # in a stranger's folder a link to what is not to be lost
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if previous and path.exists():
                alias(path, previous)
            os.replace(part, path)
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def save_atomically(checkpoint: dict[str, Any], path: Path, previous: str | None = None) -> None:
    """Write a checkpoint, see `replacing`."""
    import torch

    with replacing(path, previous) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # of closing the archive, after what it could not write
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def alias(path: Path, name: str) -> None:
    """Give a checkpoint another name in its folder, replacing what had it: a link where the file system has them."""
    target, part = path.with_name(name), path.with_name(f".{name}.part")
    with writing(target):
        if target.exists() and target.samefile(path):
            return
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
            os.replace(part, target)
        except OSError:
            with path.open("rb") as old, replacing(target) as new:
                shutil.copyfileobj(old, new)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as data, on the CPU: tensors and plain values, never code.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this program.
    """
    import torch

    if not path.exists():
        raise UserError(f"no checkpoint {path}")
    if not path.is_file():
        raise UserError(f"{path}: not a plain file, so not a checkpoint")
    try:
        _require_undamaged(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "Weights only load failed" in reason:
            reason = "it holds more than tensors and plain values, and nothing else is loaded"
        raise UserError(f"{path}: damaged, or not a checkpoint: {reason}") from None
    if not _has(checkpoint, {"state_dict": dict, "config": str, "characters": str}) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in checkpoint["state_dict"].items()
    ):
        raise UserError(f"{path}: not a checkpoint of this program")
    return checkpoint


def _require_undamaged(path: Path) -> None:
    """Raises OSError or BadZipFile unless all in this archive is as it was written; torch.load would not look."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile("it is compressed")  # which torch.save never does, and a bomb is
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is not as it was written")


def _has(record: Any, kinds: dict[str, type]) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in kinds.items())


def load(path: str | os.PathLike[str]) -> "tuple[LanguageModel, CharTokenizer]":
    """A trained model in eval mode on the CPU, and its tokenizer.

    Args:
        path: a run folder (its best checkpoint), a name under `runs`, a checkpoint file, a folder that `lm.export`
            wrote, or "pretrained" for the small model that comes with this program.

    Raises:
        UserError: there is nothing to load there, or it does not fit together.
    """
    model, tokenizer, _ = load_with_config(path)
    return model, tokenizer


def load_with_config(path: str | os.PathLike[str]) -> "tuple[LanguageModel, CharTokenizer, Config]":
    """As `load`, with the configuration of the run."""
    from lm.model import LanguageModel

    saved = read_trained(locate(os.fspath(path)))
    problem = _missized(saved)  # before memory is taken for what a stranger's configuration asks for
    if not problem:
        model = LanguageModel(len(saved.tokenizer), saved.config.model)
        problem = _mismatch(saved, model.state_dict())
    if problem:
        raise UserError(f"{saved.path}: its weights do not fit its configuration: {problem}")
    model.load_state_dict(saved.weights)
    return model.eval(), saved.tokenizer, saved.config


def locate(name: str, runs: str = "runs") -> Path:
    """The checkpoint file or export folder that a name or path means; an empty name means the newest run.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if name and os.path.isfile(path):
        return path.parent if path.name == "model.safetensors" else path
    if name and os.path.isfile(path / "model.safetensors"):
        return path
    if name == PRETRAINED.name and not any(
        os.path.isfile(folder / "config.yaml") for folder in (path, Path(runs) / name)
    ):
        return PRETRAINED
    run = Run.find(name, runs)
    for checkpoint in ("best.ckpt", "last.ckpt", "previous.ckpt"):
        if (run.checkpoints / checkpoint).exists():
            return run.checkpoints / checkpoint
    raise UserError(f"{run.path}: no checkpoint there yet")


@dataclass
class Trained:
    """What a checkpoint or an export holds."""

    path: Path
    weights: "dict[str, Tensor]"
    config: Config
    tokenizer: CharTokenizer
    about: dict[str, Any]
    """where it comes from: of an export its provenance, of a checkpoint its step"""


def read_trained(path: Path) -> Trained:
    """Read a checkpoint file or an export folder.

    Raises:
        UserError: it is missing, damaged, or not one of these.
    """
    if path.is_dir():
        from lm.export import read_export

        return read_export(path)
    checkpoint = read_checkpoint(path)
    weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    tokenizer = CharTokenizer(checkpoint["characters"])
    step = checkpoint.get("global_step")
    about = {"step": step if isinstance(step, int) else None}
    return Trained(path, weights, from_yaml(checkpoint["config"], path), tokenizer, about)


def _missized(saved: Trained) -> str:
    """Where the size of the model is not that of its weights; empty where it is."""
    model, ids = saved.config.model, len(saved.tokenizer)
    layers = len({name.split(".")[1] for name in saved.weights if name.startswith("blocks.")})
    embedding = saved.weights.get("embedding.weight")
    if embedding is None or embedding.ndim != 2:
        return "embedding.weight is missing"
    if embedding.shape[0] != ids:
        return f"they are for {embedding.shape[0]} ids and the tokenizer has {ids}"
    if (embedding.shape[1], layers) != (model.width, model.layers):
        return f"they are of {layers} layers of width {embedding.shape[1]}, not {model.layers} of {model.width}"
    return ""


def _mismatch(saved: Trained, expected: "dict[str, Tensor]") -> str:
    """The first thing that weights miss, have too many, or have in another shape; empty where all fit."""
    for name in sorted(expected.keys() ^ saved.weights.keys()):
        return f"{name} is {'missing' if name in expected else 'not a weight of this model'}"
    for name, weight in saved.weights.items():
        if weight.shape != expected[name].shape or not weight.is_floating_point() or weight.is_sparse:
            found, right = (f"{t.dtype} {list(t.shape)}".removeprefix("torch.") for t in (weight, expected[name]))
            return f"{name} is {found}, not {right}"
    return ""


def environment(corpus: str) -> dict[str, Any]:
    """What a result may depend on: versions, processor, cores, the command, the digest of the text."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": sys.argv,
        "corpus": corpus,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
