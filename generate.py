"""Write text with a trained model: `python generate.py [RUN] --prompt TEXT`. Only text goes to stdout."""

import os
import sys
from pathlib import Path
from typing import Any

from lm.config import COPYING, Parser, UserError


def make_parser() -> Parser:
    """The options, with their help."""
    parser = Parser(
        prog="generate.py",
        usage="[RUN] [--prompt TEXT] [--chars N] [--temperature X] ...",
        description="Continue a prompt with a trained model. The prompt and its continuation alone go to stdout.",
    )
    add = parser.add_argument
    add("run", nargs="?", default="", help="a run's name or folder, or a checkpoint file (default: the newest run)")
    add("--prompt", type=str, default="\n", help="text to continue; @FILE reads a file, - reads stdin")
    add("--chars", type=int, default=1000, help="characters to write")
    add("--temperature", type=float, default=0.8, help="below 1: safer, above 1: wilder, 0: always the likeliest")
    add("--top_k", type=int, default=0, help="choose among the k likeliest characters only; 0: among all")
    add("--top_p", type=float, default=1.0, help="choose among the likeliest that have this probability together")
    add("--min_p", type=float, default=0.0, help="leave out what is less likely than this times the likeliest")
    add("--samples", type=int, default=1, help="number of continuations")
    add("--seed", type=int, default=0, help="the same seed writes the same text")
    add("--stop", type=str, help="end before this text")
    add("--runs", type=str, default="runs", help="folder of the run folders")
    return parser


def check(options: Any) -> None:
    """Refuse values out of range."""
    rules = (
        ("chars", options.chars >= 0, "at least 0"),
        ("temperature", 0 <= options.temperature < float("inf"), "at least 0"),
        ("top_k", options.top_k >= 0, "at least 0"),
        ("top_p", 0 < options.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= options.min_p <= 1, "between 0 and 1"),
        ("samples", options.samples >= 1, "at least 1"),
        ("seed", 0 <= options.seed < 2**64, "between 0 and 2^64"),
        ("stop", options.stop != "", "some text"),
    )
    for name, holds, text in rules:
        if not holds:
            raise UserError(f"--{name} must be {text}, not {getattr(options, name)!r}")


def read_prompt(prompt: str) -> str:
    """The prompt itself, or what @FILE or - stands for."""
    from lm.corpus import read_text

    if prompt == "-":
        return sys.stdin.read()
    return read_text(Path(prompt[1:])) if prompt.startswith("@") and len(prompt) > 1 else prompt


def write(text: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Generate. Returns the exit code: 0, or 2 for a mistake in the command."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        check(options)
        prompt = read_prompt(options.prompt)
        return generate(options, prompt)
    except UserError as error:
        parser.error(str(error))
    except (KeyboardInterrupt, BrokenPipeError):
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 130


def generate(options: Any, prompt: str) -> int:
    """Everything that needs the model."""
    from lm.run import Run, load_with_config

    path = options.run if Path(options.run).is_file() else Run.find(options.run, options.runs).path
    from lm.sampling import generate as continuations

    model, tokenizer, config = load_with_config(path)
    if config.data.corpus == COPYING:
        raise UserError(f"{path} answers {COPYING}, it writes no text; its accuracy: python -m lm.evaluate {path}")
    if missing := tokenizer.missing(prompt):
        raise UserError(f"--prompt has characters that {path} has never seen: {' '.join(map(repr, missing))}")
    print(f"{path}, temperature {options.temperature:g}, seed {options.seed}", file=sys.stderr)
    filters = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "min_p", "stop")}
    for sample in range(options.samples):
        if sample:
            write("\n\n")
        write(prompt)
        for piece in continuations(
            model, tokenizer, prompt, options.chars, seed=options.seed, sample=sample, **filters
        ):
            write(piece)
    write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
