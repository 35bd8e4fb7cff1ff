"""Characters <-> ids, lossless.

Ids follow the code points of the corpus' characters, so that those of tiny_shakespeare equal nanoGPT's; the last id is
the unknown character. The file is one of the `tokenizers` library. Encoding and decoding use a numpy table over UTF-32,
300 times faster than that library, with equal results (a test compares them).
"""

import json
from pathlib import Path

import numpy as np

from lm.files import SURROGATE, UserError, read_text

UNKNOWN = "\ufffd"
"""What the unknown id decodes to: the Unicode replacement character."""
CODE_POINTS = 0x110000
PIECE = 2**22
"""Characters that are encoded at a time."""
LARGEST = 2**28
"""Limit in bytes of a tokenizer file; the largest possible one has a sixth of it."""


class CharTokenizer:
    """One id per character.

    Args:
        characters: the vocabulary, in any order; duplicates and U+FFFD are dropped.

    Raises:
        UserError: `characters` is not a text, or has lone surrogates, which no UTF-8 file has.
    """

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str) or SURROGATE.search(characters):
            raise UserError("the characters of this tokenizer are not Unicode text")
        self.characters = "".join(sorted(set(characters) - {UNKNOWN}))
        self.unknown = len(self.characters)
        self.dtype = np.dtype(np.uint16 if self.unknown < 2**16 else np.uint32)
        self._code_points = np.append(code_points(self.characters), ord(UNKNOWN)).astype(np.uint32)
        self._table: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of ids, the unknown included."""
        return self.unknown + 1

    def encode(self, text: str) -> np.ndarray:
        """Ids of the characters (len(text),), uint16 or uint32. A character outside the vocabulary is `unknown`."""
        if self._table is None:
            self._table = np.full(CODE_POINTS, self.unknown, dtype=self.dtype)
            self._table[self._code_points[:-1]] = np.arange(self.unknown, dtype=self.dtype)
        ids = np.empty(len(text), dtype=self.dtype)
        for i in range(0, len(text), PIECE):  # at once, UTF-32 and numpy's index take 12 bytes a character
            ids[i : i + PIECE] = self._table[code_points(text[i : i + PIECE])]
        return ids

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ids (n,), which must be below `len(self)`."""
        return self._code_points[np.asarray(ids, dtype=np.int64)].tobytes().decode("utf-32-le", "surrogatepass")

    def missing(self, text: str) -> str:
        """The distinct characters of a text that have no id, in code-point order."""
        return "".join(sorted(set(text) - set(self.characters)))

    def to_json(self) -> str:
        """The content of a `tokenizers` file: a BPE model whose vocabulary is the characters, without merges."""
        from tokenizers import Tokenizer, decoders, models

        vocabulary = {c: i for i, c in enumerate(self.characters)} | {UNKNOWN: self.unknown}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, fuse_unk=False))
        tokenizer.decoder = decoders.Fuse()
        return tokenizer.to_str(pretty=True)

    @classmethod
    def load(cls, path: Path) -> "CharTokenizer":
        """Read a file that `to_json` made.

        Raises:
            UserError: it is not one, or its ids are not in code-point order.
        """
        try:
            vocabulary = json.loads(read_text(path, LARGEST))["model"]["vocab"]
            tokenizer = cls("".join(vocabulary))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is not a tokenizer file: {error!r}") from None
        if vocabulary != {c: i for i, c in enumerate(tokenizer.characters + UNKNOWN)}:
            raise UserError(f"{path} is not a character tokenizer made by this program")
        return tokenizer


def code_points(text: str) -> np.ndarray:
    """The code points of a text (n,), uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
