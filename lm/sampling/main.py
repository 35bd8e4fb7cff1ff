"""`char-lm generate`: write text with a trained model, score a text, or read and answer lines."""

import json
import math
import sys
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
    """Refuse options that do not go together by a UserError that names one and what it must be."""
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


def run(options: GenerateOptions) -> int:
    """Write, score or talk. Returns the exit code, after the state was saved: also if the output could not be written.

    Raises:
        UserError: the options, the model or the state are wrong.
        OSError: of the output, such as a full disk or a closed pipe.
    """
    check(options)
    prompt = read_argument(options.prompt) if options.prompt is not None else None
    path = locate(options.run, options.runs)
    from lm.sampling.interactive import interact
    from lm.sampling.session import Session

    session, output, code = Session.open(path, options), Output(options.out), 0
    about = f"{path}, temperature {options.temperature:g}, seed {session.seed}"
    if options.interactive:
        print(about, file=sys.stderr)
        interact(session, prompt or "", output)
    elif options.score:
        score(session, prompt, output)
    else:
        session.read(prompt)
        session.check_samples()
        print(about, file=sys.stderr)
        code = 130 if options.samples != 0 and write(session, prompt or "", output) else 0
    output.close()
    if options.save_state:
        session.save(Path(options.save_state))
    if output.problem:
        raise output.problem
    return code


def locate(run: str, runs: str) -> Path:
    """The model's files; where no run is named and none exists, those of the pretrained model."""
    from lm.runs.load import PRETRAINED, locate

    if not run and PRETRAINED.is_dir() and not any(Path(runs).glob("*/config.yaml")):
        print(f"no run in {runs}/ yet: using the pretrained model", file=sys.stderr)
        return PRETRAINED
    return locate(run, runs)


def _file_of(text: str) -> Path | None:
    """The file that `@FILE` names; None for other text."""
    return Path(text[1:]) if text.startswith("@") and len(text) > 1 else None


def read_argument(text: str) -> str:
    """The text itself, or the content of stdin for `-` and of a file for `@FILE`."""
    if text == "-":
        return as_text(sys.stdin.buffer.read(), Path("stdin"))
    path = _file_of(text)
    return text if path is None else read_text(path)


def write(session: "Session", prompt: str, output: Output) -> bool:
    """Write the prompt and its continuations, or JSON lines. Returns whether Ctrl-C ended them."""
    from lm.sampling.session import interrupts

    options, samples = session.options, max(len(session.positions), session.options.samples or 1)
    writer = JsonWriter(output) if options.json else TextWriter(output, prompt, samples)
    with interrupts() as interrupted:
        for pieces in session.write(lambda: interrupted() or bool(output.problem)):
            for piece in pieces:
                writer(piece)
        return interrupted()


def score(session: "Session", prompt: str | None, output: Output) -> None:
    """Write the loss per character of a text, which is read in pieces: any length takes the same memory."""
    from lm.corpora.sources import read_pieces

    text = session.options.score or ""
    path = _file_of(text)
    if prompt:
        session.read(prompt)
    raw = session.tokenizer.unit == "byte"
    found = session.score([text] if path is None and text != "-" else read_pieces(path, raw=raw))
    if found.characters == 0:
        raise UserError("--score: a text of one character has nothing to predict; give more, or a --prompt before it")
    loss = -found.total / found.characters
    bits, perplexity = loss / math.log(2), math.exp(min(loss, 700))
    if session.options.json:
        names = ("characters", "nats_per_character", "bits_per_character", "perplexity", "unknown")
        values = dict(zip(names, (found.characters, loss, bits, perplexity, found.unknown), strict=True))
        line = json.dumps(values | ({"nats_per_byte": -found.total / found.bytes} if raw else {}))
    else:
        line = (
            f"{found.characters:,} characters  {loss:.4f} nats/char  {bits:.4f} bits/char  perplexity {perplexity:.4f}"
        )
        line += f"  {-found.total / found.bytes:.4f} nats/byte" if raw else ""
    output.write(line + "\n")
    if found.unknown:
        print(f"{found.unknown:,} of these characters the model has never seen; scored as the unknown", file=sys.stderr)
