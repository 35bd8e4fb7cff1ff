"""Write text with a trained model: `python generate.py [RUN] --prompt TEXT`. Only text goes to stdout."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.config import SAMPLING, Parser, UserError

if TYPE_CHECKING:
    from lm.interactive import Session
    from lm.sampling import Piece


def make_parser() -> Parser:
    """The options, with their help."""
    parser = Parser(
        prog="generate.py",
        usage="[RUN] [--prompt TEXT] [--chars N] [--temperature X] ...",
        description="Continue a prompt with a trained model. The prompt and its continuation alone go to stdout.",
    )
    add = parser.add_argument
    add(
        "run",
        nargs="?",
        default="",
        help="a run's name or folder, a checkpoint file, or an exported folder "
        "(default: the newest run; where there is none, the pretrained model)",
    )
    add("--prompt", type=str, help=r"text to continue; @FILE reads a file, - stdin (default: the start of a line)")
    add("--chars", type=int, default=1000, help="characters to write; 0: until interrupted by Ctrl-C")
    add("--temperature", type=float, default=0.8, help="below 1: safer, above 1: wilder, 0: always the likeliest")
    add("--top_k", type=int, default=0, help="choose among the k likeliest characters only; 0: among all")
    add("--top_p", type=float, default=1.0, help="choose among the likeliest that have this probability together")
    add("--min_p", type=float, default=0.0, help="leave out what is less likely than this times the likeliest")
    add("--samples", type=int, help="number of continuations; 0: only read the prompt, for --save_state (default: 1)")
    add("--seed", type=int, help="the same seed writes the same text (default: 0, or that of the loaded state)")
    add("--stop", type=str, action="append", help="end before this text; may be given several times")
    add("--out", type=str, help="write to this file instead of stdout, whole characters as they are made")
    add(
        "--json",
        action="store_true",
        help="write JSON lines, one per sample (per 4,096 characters of a long one): sample, text, log_probabilities "
        "(natural logarithms of the model's own, unfiltered probabilities at temperature 1) and finish, which is "
        "length, stop or interrupted, or null where the sample goes on",
    )
    add("--interactive", action="store_true", help="type text, read how it goes on, type more; /help there says more")
    add("--score", type=str, help="instead of writing, print the loss per character of this text (@FILE, -)")
    add("--save_state", type=str, help="keep where the texts end in this file, what stopped them included")
    add("--load_state", type=str, help="go on from there; --prompt is then read in addition")
    add(
        "--weights", choices=("float32", "bfloat16", "int8"), default="float32", help="fewer bits are faster, not equal"
    )
    add("--runs", type=str, default="runs", help="folder of the run folders")
    return parser


def check(options: Any) -> None:
    """Refuse values out of range, and options that do not go together."""
    several = (options.samples or 1) > 1
    rules = (
        ("chars", options.chars > 0 or options.json or not several, "above 0 for several samples without --json"),
        ("samples", options.samples is None or options.samples >= 0, "at least 0"),
        ("samples", (options.samples or 0) <= 1_000_000, "at most 1,000,000"),
        ("samples", options.samples != 0 or options.save_state, "at least 1 without --save_state"),
        ("samples", not (options.interactive or options.score) or not several, "1 with --interactive or --score"),
        ("stop", "" not in (options.stop or ()), "some text"),
        ("score", options.score != "", "some text"),
        ("score", not (options.score and options.interactive), "left out with --interactive"),
        ("out", not (options.out and options.interactive), "left out with --interactive"),
        ("json", not (options.json and options.interactive), "left out with --interactive"),
    )
    values = {name: getattr(options, name) for name in SAMPLING}
    ranges = ((name, values[name] is None or holds(values[name]), text) for name, (_, holds, text) in SAMPLING.items())
    for name, holds, text in (*ranges, *rules):
        if not holds:
            raise UserError(f"--{name} must be {text}, not {getattr(options, name)!r}")
    for name in ("save_state", "load_state", "out"):
        if getattr(options, name) == "":
            raise UserError(f"--{name} needs the name of a file")
    if options.save_state and not Path(options.save_state).parent.is_dir():
        raise UserError(f"--save_state {options.save_state}: there is no folder {Path(options.save_state).parent}")
    if options.save_state and Path(options.save_state).is_dir():
        raise UserError(f"--save_state {options.save_state}: this is a folder; a file is expected")
    if options.prompt == options.score == "-":
        raise UserError("--prompt and --score cannot both be -: stdin is read once")


def read_argument(text: str) -> str:
    """The text itself, or what @FILE or - stands for."""
    from lm.corpus import read_text

    if text == "-":
        return sys.stdin.read()
    return read_text(Path(text[1:])) if text.startswith("@") and len(text) > 1 else text


class Output:
    """Text to stdout or a file, soon: what has waited for 20 ms goes out with the next character."""

    def __init__(self, path: str | None) -> None:
        import time

        self._clock, self._flushed = time.perf_counter, 0.0
        try:
            self._file = open(path, "w", encoding="utf-8", newline="") if path else sys.stdout  # noqa: SIM115
        except OSError as error:
            raise UserError(f"--out {path}: {error.strerror}") from None

    def write(self, text: str) -> None:
        self._file.write(text)
        if self._clock() - self._flushed > 0.02:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = self._clock()

    def close(self) -> None:
        self.flush()
        if self._file is not sys.stdout:
            self._file.close()


class TextWriter:
    """The samples one after another, each after the prompt: the first as it is made, the others wait for their turn."""

    def __init__(self, output: Output, prompt: str) -> None:
        self.output, self.prompt, self.turn = output, prompt, 0
        self.waiting: dict[int, list[str]] = {}
        self.ended: set[int] = set()
        output.write(prompt)
        output.flush()

    def __call__(self, piece: "Piece") -> None:
        if piece.finish:
            self.ended.add(piece.sample)
        if piece.sample != self.turn:
            self.waiting.setdefault(piece.sample, []).append(piece.text)
            return
        self.output.write(piece.text)
        while self.turn in self.ended:
            self.turn += 1
            if self.turn in self.waiting or self.turn in self.ended:
                self.output.write("\n\n" + self.prompt + "".join(self.waiting.pop(self.turn, [])))

    def close(self) -> None:
        self.output.write("\n")


class JsonWriter:
    """A line per sample, or per CHARACTERS of it."""

    CHARACTERS = 4096

    def __init__(self, output: Output) -> None:
        self.output = output
        self.texts: dict[int, list[str]] = {}
        self.logs: dict[int, list[float]] = {}

    def __call__(self, piece: "Piece") -> None:
        logs = self.logs.setdefault(piece.sample, [])
        logs += piece.log_probabilities
        self.texts.setdefault(piece.sample, []).append(piece.text)
        if piece.finish or len(logs) >= self.CHARACTERS:
            line = {"sample": piece.sample, "text": "".join(self.texts.pop(piece.sample))}
            line |= {"log_probabilities": [round(x, 6) for x in self.logs.pop(piece.sample)]}
            self.output.write(json.dumps(line | {"finish": piece.finish or None}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        pass


def main(argv: list[str] | None = None) -> int:
    """Generate. Returns the exit code: 0, 2 for a mistake in the command, or 130 when interrupted."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        check(options)
        return run(options)
    except UserError as error:
        parser.error(str(error))
    except MemoryError:
        parser.error("out of memory: lower --samples")
    except (KeyboardInterrupt, BrokenPipeError):
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 130


def run(options: Any) -> int:
    """Everything that needs the model."""
    if options.prompt is not None:
        options.prompt = read_argument(options.prompt)
    where = locate(options.run, options.runs)
    from lm.interactive import Session, interact

    session = Session.open(where, options)
    about = f"{where}, temperature {options.temperature:g}, seed {session.seed}"
    if options.score:
        return score(session, options)
    if options.interactive:
        print(about, file=sys.stderr)
        return interact(session, options.prompt or "")
    return write(session, options, about)


def locate(run: str, runs: str) -> Path:
    """The model's files; where no run is named and none exists, those of the pretrained model."""
    from lm.run import PRETRAINED, locate

    if not run and PRETRAINED.is_dir() and not any(Path(runs).glob("*/config.yaml")):
        print(f"no run in {runs}/ yet: using the pretrained model", file=sys.stderr)
        return PRETRAINED
    return locate(run, runs)


def write(session: "Session", options: Any, about: str) -> int:
    """The prompt and its continuations, or JSON lines."""
    from lm.interactive import Interrupts

    session.read(options.prompt)
    several = len(session.positions)
    if several > 1 and options.chars == 0 and not options.json:
        raise UserError(f"the state holds {several} samples: --chars must then be above 0 without --json")
    if options.samples and several not in (1, options.samples):
        raise UserError(f"the state holds {several} samples: --samples cannot be {options.samples}")
    output = Output(options.out if options.samples != 0 else None)
    print(about, file=sys.stderr)
    interrupted = False
    if options.samples != 0:
        writer = JsonWriter(output) if options.json else TextWriter(output, options.prompt or "")
        with Interrupts() as asked:
            for pieces in session.write(options.samples, options.json, asked):
                for piece in pieces:
                    writer(piece)
            interrupted = asked()
        writer.close()
        output.close()
    if options.save_state:
        session.save(Path(options.save_state))
    return 130 if interrupted else 0


def score(session: "Session", options: Any) -> int:
    """The loss per character of a text, read in pieces: in constant memory, whatever its length."""
    from lm.corpus import read_pieces

    if options.prompt:
        session.read(options.prompt)
    text = options.score
    pieces: Iterator[str] = iter([text])
    if text == "-" or (text.startswith("@") and len(text) > 1):
        pieces = read_pieces(None if text == "-" else Path(text[1:]))
    count, total, unknown = session.score(pieces)
    if count == 0:
        raise UserError("--score: a text of one character has nothing to predict; give more, or a --prompt before it")
    loss = -total / count
    names = ("characters", "nats_per_character", "bits_per_character", "perplexity", "unknown")
    values = (count, loss, loss / math.log(2), math.exp(min(loss, 700)), unknown)
    output = Output(options.out)
    if options.json:
        output.write(json.dumps(dict(zip(names, values, strict=True))) + "\n")
    else:
        output.write(
            f"{count:,} characters  {values[1]:.4f} nats/char  {values[2]:.4f} bits/char  perplexity {values[3]:.4f}\n"
        )
    output.close()
    if unknown:
        print(f"{unknown:,} of these characters the model has never seen; scored as the unknown", file=sys.stderr)
    if options.save_state:
        session.save(Path(options.save_state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
