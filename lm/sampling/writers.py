"""Where generated text goes: plain text or JSON lines, to stdout or a file."""

import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm.sampling.text import Piece


class Output:
    """Text to stdout or a file, soon: what has waited for 20 ms goes out with the next character."""

    def __init__(self, path: str | None) -> None:
        self._flushed = 0.0
        self._file = open(path, "w", encoding="utf-8", newline="") if path else sys.stdout  # noqa: SIM115

    def write(self, text: str) -> None:
        self._file.write(text)
        if time.perf_counter() - self._flushed > 0.02:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.perf_counter()

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
