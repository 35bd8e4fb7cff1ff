"""`char-lm generate`: write text with a trained model. Only text goes to stdout."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lm.files import UserError, as_text, read_text
from lm.sampling.options import GenerateOptions
from lm.sampling.writers import JsonWriter, Output, TextWriter

if TYPE_CHECKING:
    from lm.sampling.session import Session

Options = GenerateOptions
USAGE = "[RUN] [--prompt TEXT] [--chars N] [--temperature X] ..."


def check(options: GenerateOptions) -> None:
    """Refuse options that do not go together.

    Raises:
        UserError: names the option, and what it must be.
    """
    several = (options.samples or 1) > 1
    rules = (
        ("chars", options.chars > 0 or options.json or not several, "above 0 for several samples without --json"),
        ("samples", options.samples != 0 or options.save_state, "at least 1 without --save_state"),
        ("samples", not (options.interactive or options.score) or not several, "1 with --interactive or --score"),
        ("stop", "" not in options.stop, "some text"),
        ("score", options.score != "", "some text"),
        ("load_state", options.load_state != "", "the name of a file"),
        ("score", not (options.score and options.interactive), "left out with --interactive"),
        ("out", not (options.out and options.interactive), "left out with --interactive"),
        ("json", not (options.json and options.interactive), "left out with --interactive"),
    )
    for name, holds, text in rules:
        if not holds:
            raise UserError(f"--{name} must be {text}, not {getattr(options, name)!r}")
    if options.prompt == options.score == "-":
        raise UserError("--prompt and --score cannot both be -: stdin is read once")


def read_argument(text: str) -> str:
    """The text itself, or what @FILE or - stands for."""
    if text == "-":
        return as_text(sys.stdin.buffer.read(), Path("stdin"))
    return read_text(Path(text[1:])) if text.startswith("@") and len(text) > 1 else text


def run(options: GenerateOptions) -> int:
    """Generate, score, or talk."""
    check(options)
    if options.prompt is not None:
        options.prompt = read_argument(options.prompt)
    where = locate(options.run, options.runs)
    from lm.sampling.interactive import interact
    from lm.sampling.session import Session

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
    from lm.runs.load import PRETRAINED, locate

    if not run and PRETRAINED.is_dir() and not any(Path(runs).glob("*/config.yaml")):
        print(f"no run in {runs}/ yet: using the pretrained model", file=sys.stderr)
        return PRETRAINED
    return locate(run, runs)


def write(session: "Session", options: GenerateOptions, about: str) -> int:
    """The prompt and its continuations, or JSON lines; whatever ends the writing, the state is saved as asked."""
    session.read(options.prompt)
    several = len(session.positions)
    if several > 1 and options.chars == 0 and not options.json:
        raise UserError(f"the state holds {several} samples: --chars must then be above 0 without --json")
    if options.samples and several not in (1, options.samples):
        raise UserError(f"the state holds {several} samples: --samples cannot be {options.samples}")
    print(about, file=sys.stderr)
    interrupted, problem = _write_samples(session, options) if options.samples != 0 else (False, None)
    if options.save_state:
        session.save(Path(options.save_state))
    if problem:
        raise problem
    return 130 if interrupted else 0


def _write_samples(session: "Session", options: GenerateOptions) -> tuple[bool, OSError | None]:
    """Whether Ctrl-C ended the samples, and what the output could not take: they then end where it was full."""
    from lm.sampling.session import Interrupts

    problem: OSError | None = None
    with Interrupts() as asked:
        try:
            output = Output(options.out)
            writer = JsonWriter(output) if options.json else TextWriter(output, options.prompt or "")
            ends = session.write(options.samples, options.json, lambda: asked() or problem is not None)
            for pieces in ends:
                try:
                    for piece in pieces:
                        writer(piece)
                except OSError as error:
                    problem = problem or error
            if not problem:
                writer.close()
                output.close()
        except OSError as error:
            problem = problem or error
        return asked(), problem


def score(session: "Session", options: GenerateOptions) -> int:
    """The loss per character of a text, read in pieces: in constant memory, whatever its length."""
    from lm.corpora.sources import read_pieces

    if options.prompt:
        session.read(options.prompt)
    text = options.score or ""
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
