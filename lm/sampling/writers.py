"""Where generated text goes: plain text or JSON lines, to stdout or a file."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from lm.report.format import HIDDEN

if TYPE_CHECKING:
    from lm.sampling.text import Piece


class Output:
    """Text to stdout, or to a file that is created at the first text; flushed when 20 ms have passed. A terminal gets
    no control characters.

    The first error, such as a full disk or a closed pipe, is kept in `problem` and all later text is dropped, so that
    the caller can still save a state before it raises the error.
    """

    def __init__(self, path: str | None) -> None:
        self.problem: OSError | None = None
        self._path, self._flushed = path, 0.0
        self._file: IO[str] | None = None if path else sys.stdout
        self._terminal = not path and sys.stdout.isatty()

    def write(self, text: str, flush: bool = False) -> None:
        """Write some text, at once if `flush`."""
        if self.problem:
            return
        with self._keep_problem():
            if self._file is None:
                self._file = open(self._path or os.devnull, "w", encoding="utf-8", newline="")  # noqa: SIM115
            self._file.write(text.translate(HIDDEN) if self._terminal else text)
            if flush or time.perf_counter() - self._flushed > 0.02:
                self._file.flush()
                self._flushed = time.perf_counter()

    def close(self) -> None:
        """Flush stdout, or close the file."""
        with self._keep_problem():
            if self._file:
                self._file.close() if self._path else self._file.flush()

    @contextmanager
    def _keep_problem(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self._path or "stdout"
            self.problem = self.problem or error


class TextWriter:
    """Writes samples one after another, each after the prompt. The first appears as it is made, the others in turn."""

    def __init__(self, output: Output, prompt: str, samples: int) -> None:
        self.output, self.prompt, self.current = output, prompt, 0
        self.waiting: list[list[str]] = [[] for _ in range(samples)]
        self.ended = [False] * samples
        output.write(prompt)

    def __call__(self, piece: "Piece") -> None:
        """Write a piece, or keep it until its sample's turn."""
        self.waiting[piece.sample].append(piece.text)
        self.ended[piece.sample] = bool(piece.finish)
        while self.current < len(self.ended):
            self.output.write("".join(self.waiting[self.current]))
            self.waiting[self.current].clear()
            if not self.ended[self.current]:
                return
            self.current += 1
            self.output.write("\n\n" + self.prompt if self.current < len(self.ended) else "\n")


class JsonWriter:
    """Writes one JSON line per sample, or per CHARACTERS of it."""

    CHARACTERS = 4096

    def __init__(self, output: Output) -> None:
        self.output = output
        self.samples: dict[int, tuple[list[str], list[float]]] = {}

    def __call__(self, piece: "Piece") -> None:
        """Write the line of a piece's sample if it is complete."""
        texts, logs = self.samples.setdefault(piece.sample, ([], []))
        texts.append(piece.text)
        logs.extend(piece.log_probabilities)
        if piece.finish or len(logs) >= self.CHARACTERS:
            del self.samples[piece.sample]
            line = {"sample": piece.sample, "text": "".join(texts), "log_probabilities": [round(x, 6) for x in logs]}
            self.output.write(json.dumps(line | {"finish": piece.finish or None}, ensure_ascii=False) + "\n")
