"""Simple figures of generated text beside those of real text (`char-lm evaluate --text`)."""

import re
from dataclasses import dataclass

from lm.config.options import COPYING, Config, DataConfig
from lm.files import UserError
from lm.report.format import align, number

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
SPEECH = re.compile(r"(?:\A|\n\n)([^\n:]{1,40}):\n")
"""The head of a speech, after an empty line: the name of who speaks, and a colon."""
HEADER = ("text", "characters", "words known", "longest copy", "lines a speech", "speakers known")


@dataclass(frozen=True)
class Figures:
    """Figures of a text beside the text that a model was trained on."""

    characters: int
    words_known: float | None
    """share of its words, in any case, that occur in the training text; None without words"""
    longest_copy: int
    """characters in its longest passage that occurs in the training text"""
    lines_per_speech: float | None
    """mean number of lines, none of them empty, in a speech; None for a text without speeches"""
    speakers_known: float | None
    """share of its speeches whose speaker has a speech in the training text"""

    def cells(self) -> tuple[str, ...]:
        """The cells of a table, without the name of the text."""
        known, speakers = number(self.words_known, ".1%"), number(self.speakers_known, ".1%")
        return f"{self.characters:,}", known, f"{self.longest_copy:,}", number(self.lines_per_speech), speakers


def measure(text: str, training: str) -> Figures:
    """The figures of a text."""
    words, known = words_of(text), set(words_of(training))
    heads, speakers = SPEECH.findall(text), set(SPEECH.findall(training))
    _, *speeches = SPEECH.split(text)
    lines = [len([line for line in speech.split("\n") if line]) for speech in speeches[1::2]]
    return Figures(
        len(text),
        share([word in known for word in words]),
        longest_copy(text, training),
        sum(lines) / len(lines) if lines else None,
        share([head in speakers for head in heads]),
    )


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, contractions as one word."""
    return WORD.findall(text.lower())


def share(flags: list[bool]) -> float | None:
    """The share that is true; None of nothing."""
    return sum(flags) / len(flags) if flags else None


def longest_copy(text: str, training: str) -> int:
    """The length of the longest passage that both texts have."""
    longest = 0
    for start in range(len(text)):
        while start + longest < len(text) and text[start : start + longest + 1] in training:
            longest += 1
    return longest


def scored_data(config: Config, corpus: str | None) -> DataConfig:
    """The data of a run, or another corpus in its kind of vocabulary."""
    if corpus is None:
        return config.data
    return DataConfig(corpus=corpus, context=1, vocabulary=config.data.vocabulary)


def print_figures(runs: list[str], chars: int, corpus: str | None) -> None:
    """Print the figures of what each run writes (seed 0, temperature 0.8, from the start of a line), and of real text.

    Raises:
        UserError: a run was not trained on text.
    """
    from lm.corpora.corpus import load_corpus
    from lm.runs.load import load_with_config
    from lm.sampling.packed import pack
    from lm.sampling.text import generate

    rows: dict[str, Figures] = {}
    for run in runs:
        model, tokenizer, config = load_with_config(run)
        if config.data.corpus == COPYING:
            raise UserError(f"--text: {run} was trained on {COPYING}, not on text")
        source = scored_data(config, corpus)
        split = load_corpus(source)
        training = split.tokenizer.decode(split.train)
        real = split.tokenizer.decode(split.validation[: 4 * chars])[:chars]  # a character has at most 4 bytes
        rows.setdefault(f"{source.corpus}, validation split", measure(real, training))
        written = "".join(generate(pack(model), tokenizer, "", chars, temperature=0.8))
        rows[run] = measure(written, training)
    print("\n".join(align([HEADER, *((name, *figures.cells()) for name, figures in rows.items())], left=1)))
