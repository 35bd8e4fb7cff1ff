"""The commands of `char-lm`, run in this process: each is a function of its words that returns the exit code."""

from lm import cli


def run(*words: str) -> int:
    """`char-lm WORDS`."""
    return cli.main(list(words))


def train(words: list[str]) -> int:
    return run("train", *words)


def generate(words: list[str]) -> int:
    return run("generate", *words)


def compare(words: list[str]) -> int:
    return run("compare", *words)


def sweep(words: list[str]) -> int:
    return run("sweep", *words)


def evaluate(words: list[str]) -> int:
    return run("evaluate", *words)


def export(words: list[str]) -> int:
    return run("export", *words)


def bench(words: list[str]) -> int:
    return run("bench", *words)


def reproduction(words: list[str]) -> int:
    return run("reproduction", *words)


def document(words: list[str]) -> int:
    return run("document", *words)
