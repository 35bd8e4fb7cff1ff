"""Text <-> ids, lossless: one id per character, or (data.vocabulary bytes) one per byte of its UTF-8.

Ids of characters follow their code points, so that those of tiny_shakespeare equal nanoGPT's; the last id is that of
the unknown character. The file is one of the `tokenizers` library. Encoding and decoding use a numpy table over UTF-32,
300 times faster than that library, with equal results (a test compares them).

A byte that is not UTF-8 is in a text the lone surrogate that Python's error handler `surrogateescape` has for it
(PEP 383), so that such a text has all bytes of a file; `shown` makes it one for people.
"""

import codecs
import itertools
import json
from pathlib import Path

import numpy as np

from lm.files import SURROGATE, UserError, read_text

UNKNOWN = "\ufffd"
"""What the unknown id decodes to: the Unicode replacement character."""
CODE_POINTS = 0x110000
LONGER = (0x80, 0x800, 0x10000)
"""The code points from which a character has one more byte in UTF-8."""
PIECE = 2**22
"""Characters that are encoded at a time."""
LARGEST = 2**28
"""Limit in bytes of a tokenizer file; the largest possible one has a sixth of it."""


def _characters_of_bytes() -> str:
    """For each byte its own character of Latin-1 if that can be seen, else the next one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return "".join(chr(byte if byte in seen else next(others)) for byte in range(256))


BYTES = _characters_of_bytes()
"""The characters that stand for the bytes 0 to 255 in files of the `tokenizers` library (GPT-2's `bytes_to_unicode`).
As a vocabulary they mean bytes: no text has this one, as characters are in the order of their code points."""


class CharTokenizer:
    """One id per character; the interface of `ByteTokenizer` too.

    Args:
        characters: the vocabulary, in any order; duplicates and U+FFFD are dropped.

    Raises:
        UserError: `characters` is not a text, or has lone surrogates, which no UTF-8 file has.
    """

    unit = "character"
    """what an id stands for"""

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str) or SURROGATE.search(characters):
            raise UserError("the characters of this tokenizer are not Unicode text")
        self.characters = "".join(sorted(set(characters) - {UNKNOWN}))
        self.unknown = len(self.characters)
        self.dtype = np.dtype(np.uint16 if self.unknown < 2**16 else np.uint32)
        self._code_points = np.append(code_points(self.characters), ord(UNKNOWN)).astype(np.uint32)
        self._table: np.ndarray | None = None
        self._sizes = np.ones((len(self), 2), dtype=np.uint8)  # characters and bytes that an id counts
        self._sizes[:, 1] += np.searchsorted(LONGER, self._code_points, side="right").astype(np.uint8)

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

    def decode_begun(self, ids: np.ndarray) -> tuple[str, int]:
        """The text of ids (n,) without a last character that is not whole yet, and its number of ids; see `shown`."""
        return self.decode(ids), len(ids)

    def count(self, ids: np.ndarray) -> tuple[int, int]:
        """How many characters, and bytes of UTF-8, ids (n,) are."""
        parts = [self._sizes[ids[i : i + PIECE]].sum(axis=0) for i in range(0, len(ids), PIECE)]
        characters, size = sum(parts, np.zeros(2, dtype=np.uint64)).tolist()
        return characters, size

    def place(self, ids: np.ndarray, share: float) -> int:
        """The place in ids (n,) where so large a share of its characters ends."""
        return int(share * len(ids))

    def missing(self, text: str) -> str:
        """The distinct characters of a text that have no id, in code-point order."""
        return "".join(sorted(set(text) - set(self.characters)))

    def to_json(self) -> str:
        """The content of a `tokenizers` file: a BPE model whose vocabulary is the characters, without merges."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        vocabulary = {c: i for i, c in enumerate(self.characters)} | {UNKNOWN: self.unknown}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, fuse_unk=False))
        tokenizer.decoder = decoders.Fuse()
        if self.characters == BYTES:
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            tokenizer.decoder = decoders.ByteLevel()
        return tokenizer.to_str(pretty=True)

    @staticmethod
    def load(path: Path) -> "CharTokenizer":
        """Read a file that `to_json` made.

        Raises:
            UserError: it is not one, or its ids are not in code-point order.
        """
        try:
            vocabulary = json.loads(read_text(path, LARGEST))["model"]["vocab"]
            tokenizer = make_tokenizer("".join(vocabulary).replace(UNKNOWN, ""))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is not a tokenizer file: {error!r}") from None
        if vocabulary != {c: i for i, c in enumerate(tokenizer.characters + UNKNOWN)}:
            raise UserError(f"{path} is not a character tokenizer made by this program")
        return tokenizer


class ByteTokenizer(CharTokenizer):
    """One id per byte: the byte itself, and one more, which no text has, where other vocabularies have the unknown."""

    unit = "byte"

    def __init__(self) -> None:
        super().__init__(BYTES)
        self.characters = BYTES
        self._sizes[:, 1] = 1
        self._sizes[0x80:0xC0, 0] = 0  # these bytes continue a character

    def encode(self, text: str) -> np.ndarray:
        """The bytes of a text (n,), uint16.

        Raises:
            UserError: the text has halves of characters, other than those that stand for bytes.
        """
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise UserError("the text has halves of characters (lone surrogates), which are not Unicode") from None
        return np.frombuffer(raw, dtype=np.uint8).astype(self.dtype)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ids (n,), with U+FFFD for each byte that is not UTF-8."""
        return shown(_raw(ids).decode("utf-8", "surrogateescape"))

    def decode_begun(self, ids: np.ndarray) -> tuple[str, int]:
        """As for characters, with the surrogates of bytes that are not UTF-8: `encode` of the text gives these ids."""
        return codecs.utf_8_decode(_raw(ids), "surrogateescape", False)

    def place(self, ids: np.ndarray, share: float) -> int:
        """As for characters, so that a text has its splits at the same place in both vocabularies.

        What has more than four bytes to a character is no UTF-8: the share is then one of the bytes.
        """
        characters, size = self.count(ids)
        if 4 * characters < size:
            return int(share * size)
        left = int(share * characters)
        for start in range(0, len(ids), PIECE):
            ends = self._sizes[ids[start : start + PIECE], 0].cumsum(dtype=np.int64)
            if left < ends[-1]:
                return start + int(ends.searchsorted(left, side="right"))
            left -= int(ends[-1])
        return len(ids)

    def missing(self, text: str) -> str:
        """Nothing: every text has bytes."""
        return ""


def make_tokenizer(characters: str) -> CharTokenizer:
    """The tokenizer of a vocabulary; of BYTES that of bytes. Raises UserError as `CharTokenizer`."""
    return ByteTokenizer() if characters == BYTES else CharTokenizer(characters)


def shown(text: str) -> str:
    """A text with U+FFFD in place of bytes that are not UTF-8."""
    return SURROGATE.sub(UNKNOWN, text)


def _raw(ids: np.ndarray | list[int]) -> bytes:
    return np.minimum(np.asarray(ids, dtype=np.int64), 0xFF).astype(np.uint8).tobytes()  # 0xFF is never UTF-8


def code_points(text: str) -> np.ndarray:
    """The code points of a text (n,), uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
