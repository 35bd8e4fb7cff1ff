"""`char-lm inspect`: what a model does with a text, on a page that runs the model."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lm.config.command import command_line
from lm.config.fields import POSITIONAL, FreeText, Output, Range
from lm.config.options import COPYING, DataConfig
from lm.files import UserError, atomic_write, check_output
from lm.report.document import halves, inserted
from lm.sampling.main import locate, read_argument

if TYPE_CHECKING:
    from lm.analysis.inspect.study import Subject

USAGE = "[RUN] [--text TEXT|@FILE] [--html FILE] [--beside RUN] [--png PREFIX]"
TEXT_CHARS, MOST_CHARS = 1500, 10_000
"""Characters of the held-out split that are shown where no text is given, and of a given text at most."""


@dataclass
class Options:
    """What a model does with a text: how surprised it is by each character, how long its channels remember, what they
    stand for. Prints the channels' figures; the page shows the rest, and runs the model."""

    run: Annotated[str, POSITIONAL] = ""
    """a run's name or folder, a checkpoint file, an exported folder, or hub:USER/NAME (default: the newest run; where
    there is none, the pretrained model)"""
    text: FreeText | None = None
    """text to show; @FILE reads a file, - stdin (default: the beginning of the held-out split)"""
    html: Output | None = None
    """write one self-contained page"""
    beside: str | None = None
    """a second model, whose surprise the page shows beside that of the first"""
    which: Literal["best", "last"] = "best"
    """which checkpoint of a run"""
    weights: Literal["bfloat16", "int8"] = "bfloat16"
    """precision of the matrices in the page"""
    corpus: str | None = None
    """corpus whose held-out split is read, instead of the run's own"""
    chars: Annotated[int, Range(least=1000)] = 200_000
    """characters of the held-out split to read at most"""
    png: str | None = None
    """write pictures for a report, whose names begin with this, such as docs/inside/"""
    channels: list[str] = field(default_factory=list)
    """with --png: channels to draw, LAYER.CHANNEL (default: the three clearest)"""
    insert: str | None = None
    """put what is printed into this document, between the marks `inspect`, or FILE#MARK"""
    runs: str = "runs"
    """folder of the run folders"""


def run(options: Options) -> int:
    """Print the figures, and write the files that were asked for. Returns the exit code."""
    if options.insert:
        halves(options.insert, "inspect")
    if options.channels and options.png is None:
        raise UserError("--channels chooses what --png draws; give --png too")
    if options.png is not None:
        check_output(f"{options.png}surprise.png")
    text = None if options.text is None else read_argument(options.text)
    if options.png is not None and text == "":
        raise UserError("--png: the text is empty, there is nothing to draw")
    subject, *others = _open(options)
    from lm.analysis.inspect.channels import number
    from lm.analysis.inspect.study import Study

    channels = [number(name, subject.hidden) for name in options.channels]
    held_out, of = _held_out(subject, options) if text is None or not subject.problem else ("", 0)
    shown, note = beginning(_from_paragraph(held_out)[:TEXT_CHARS] if text is None else text)
    with inserted(options.insert, "inspect", command_line("char-lm inspect", options)):
        if not subject.problem:
            print(f"reading {len(held_out):,} held-out characters", file=sys.stderr)
        study = None if subject.problem else Study.of(subject, held_out, of)
        print("\n".join(study.lines()) if study else f"{subject.name}: {subject.problem}; its channels are not studied")
    if options.html:
        from lm.analysis.inspect.page import page

        atomic_write(Path(options.html), page([subject, *others], shown, note, study, options.weights))
        print(f"wrote {options.html}; open it in a browser", file=sys.stderr)
    if options.png is not None:
        from lm.analysis.inspect.pictures import draw

        draw(options.png, subject, shown, study, channels)
    return 0


def beginning(text: str) -> tuple[str, str]:
    """At most MOST_CHARS of a text, and a remark where that is not all of it."""
    if len(text) <= MOST_CHARS:
        return text, ""
    return text[:MOST_CHARS], f"The text is longer; the page shows its first {MOST_CHARS:,} characters."


def _open(options: Options) -> "list[Subject]":
    """The models that were asked for."""
    from lm.analysis.inspect.study import Subject
    from lm.runs.load import make_model, read_trained

    subjects = []
    for given in [options.run, *([] if options.beside is None else [options.beside])]:
        path = locate(given, options.runs)
        if options.which == "last" and path.name == "best.ckpt" and not Path(given).is_file():
            path = path.with_name("last.ckpt")
        saved = read_trained(path)
        if saved.config.data.corpus == COPYING:
            raise UserError(f"{path}: trained on {COPYING}, not on text; char-lm inspect needs a model of text")
        if saved.tokenizer.unit != "character":
            raise UserError(f"{path}: it reads {saved.tokenizer.unit}s; char-lm inspect needs a model of characters")
        subjects.append(Subject(_name(given, path), make_model(saved), saved.tokenizer, saved.config))
    return subjects


def _name(given: str, path: Path) -> str:
    """The name of a run, with that of a checkpoint other than its best; of what is on the Hub or elsewhere its own."""
    if path.parent.name != "checkpoints":
        return (Path(given) if given.startswith("hub:") else path).name.removesuffix(".ckpt")
    run = path.parent.parent.name
    return run if path.name == "best.ckpt" else f"{run} {path.stem}"


def _held_out(subject: "Subject", options: Options) -> tuple[str, int]:
    """At most `--chars` of the validation split of the corpus, and how long that is."""
    from lm.corpora.corpus import load_corpus

    data = subject.config.data
    corpus = load_corpus(data if options.corpus is None else DataConfig(corpus=options.corpus, context=1))
    return corpus.tokenizer.decode(corpus.validation[: options.chars]), len(corpus.validation)


def _from_paragraph(text: str) -> str:
    """The text from where a paragraph starts, if that is near."""
    start = text.find("\n\n", 0, TEXT_CHARS)
    return text[start + 2 :] if start >= 0 else text
