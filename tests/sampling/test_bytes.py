"""Texts of a model that writes bytes: whole characters only, whatever the bursts, samples, stops and interruptions."""

import itertools
import json

import numpy as np
import pytest
import torch

from lm.config.options import ModelConfig
from lm.corpora.tokenizer import UNKNOWN, ByteTokenizer
from lm.model import LanguageModel
from lm.sampling.decoder import Decoder, read
from lm.sampling.filters import SamplingOptions
from lm.sampling.packed import pack
from lm.sampling.text import Piece, generate, write
from lm.sampling.writers import JsonWriter, Output
from tests.sampling.helpers import make

TOKENIZER = ByteTokenizer()
CHARACTERS = "aé語😀"
"""One of each length; no two of them share a byte."""


def chain() -> LanguageModel:
    """Writes CHARACTERS in random order: from the first byte of one its other bytes follow, then any of the four."""
    model = LanguageModel(257, ModelConfig(width=16, layers=1)).eval()  # its block adds nothing before training
    head, place = torch.full((257, 16), -1e4), {byte: i for i, byte in enumerate(CHARACTERS.encode())}
    firsts = [c.encode()[0] for c in CHARACTERS]
    for character in CHARACTERS:
        for byte, after in itertools.pairwise(character.encode()):
            head[after, place[byte]] = 0.0
        head[firsts, place[character.encode()[-1]]] = 0.0
    model.embedding.weight.data[list(place)] = torch.eye(16)[: len(place)]
    model.head.weight.data = head / 4  # the norm makes an embedding four times as long
    return model


@pytest.fixture(scope="module", params=["chain", "chain, packed", "any bytes", "any bytes, packed"])
def model(request):
    """Writes characters, or any bytes; one at a time, or packed, many at once."""
    found = chain() if "chain" in request.param else make(vocabulary=257)
    return pack(found) if "packed" in request.param else found


def pieces_of(model, chars, samples=1, positions=None, **arguments) -> list[list[Piece]]:
    """The pieces of each sample."""
    decoder = Decoder(model, positions or [read(model, TOKENIZER.encode("語a"))] * samples, seed=3)
    pieces = list(itertools.chain.from_iterable(write(decoder, TOKENIZER, chars, SamplingOptions(), **arguments)))
    return [[piece for piece in pieces if piece.sample == row] for row in range(len(decoder.logits))]


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_only_whole_characters_are_written():
    (pieces,), (one_by_one,) = pieces_of(pack(chain()), 100), pieces_of(chain(), 100)
    assert set(joined(pieces)) == set(CHARACTERS) and len(joined(pieces)) == 100
    assert max(len(piece.text) for piece in one_by_one) == 1 and joined(one_by_one) == joined(pieces)
    assert sum(piece.text == "" for piece in one_by_one) > 100  # the bytes before the last one of a character


def test_bytes_that_are_no_character_are_shown_as_the_replacement_character(model):
    text = joined(pieces_of(model, 100)[0])
    assert 100 <= len(text) <= 103 and text.encode()  # without lone surrogates
    assert (UNKNOWN in text) == (set(text) != set(CHARACTERS))
    assert "".join(generate(model, TOKENIZER, "語a", 100, seed=3)) == text


@pytest.mark.parametrize("chars", [1, 2, 5, 60])
def test_a_sample_does_not_depend_on_the_others(model, chars):
    alone = joined(pieces_of(model, chars)[0])
    assert joined(pieces_of(model, chars, samples=3)[0]) == alone
    texts = {joined(pieces) for pieces in pieces_of(model, chars, samples=3)}
    assert chars < 60 or len(texts) == 3


def test_a_text_goes_on_as_if_it_had_not_ended(model):
    whole = joined(pieces_of(model, 40)[0])
    for first in (1, 2, 3, 20):
        (pieces,) = pieces_of(model, first)
        (rest,) = pieces_of(model, 40, positions=[pieces[-1].position])
        assert pieces[-1].finish == "length" and (joined(pieces) + joined(rest)).startswith(whole)


def test_a_stop_string_ends_a_text_after_its_last_byte(model):
    """The position is the one after the stop, so that what follows is what an unbroken text has."""
    whole = joined(pieces_of(model, 100)[0])
    stop = next(whole[i : i + 2] for i in range(30, 100) if UNKNOWN not in whole[i : i + 2])
    (pieces,) = pieces_of(model, None, stops=[stop])
    assert pieces[-1].finish == "stop" and joined(pieces) == whole[: whole.index(stop)]
    (rest,) = pieces_of(model, 20, positions=[pieces[-1].position])
    assert (joined(pieces) + stop + joined(rest))[: len(whole)] == whole[: len(joined(pieces)) + 2 + len(joined(rest))]


def test_an_interruption_waits_for_whole_characters(model):
    for calls in (1, 2, 3, 4, 9):
        left = iter([False] * calls)
        found = pieces_of(model, None, samples=3, interrupted=lambda left=left: next(left, True))
        assert [[piece.finish for piece in pieces if piece.finish] for pieces in found] == [["interrupted"]] * 3
        (rest,) = pieces_of(model, 20, positions=[found[0][-1].position])
        whole = joined(pieces_of(model, len(joined(found[0])) + 20)[0])
        assert (joined(found[0]) + joined(rest)).startswith(whole)


def test_each_character_has_the_log_probability_of_its_bytes(model, tmp_path):
    (pieces,) = pieces_of(model, 40, log_probabilities=True)
    (again,) = pieces_of(model, 40)
    logs = [x for piece in pieces for x in piece.log_probabilities]
    assert joined(pieces) == joined(again) and len(logs) == len(joined(pieces))
    if UNKNOWN not in joined(pieces):
        expected = [np.log(1 / 4)] * len(logs)  # the first byte of a character is one of four, the others are certain
        assert np.allclose(logs, expected, atol=1e-4)
    output = Output(str(tmp_path / "out.jsonl"))
    writer = JsonWriter(output)
    for piece in pieces:
        writer(piece)
    output.close()
    (line,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert line["text"] == joined(pieces) and len(line["log_probabilities"]) == len(line["text"])


def test_positions_are_those_after_the_bytes_of_the_text():
    (pieces,) = pieces_of(pack(chain()), 50)
    ids = TOKENIZER.encode("語a" + joined(pieces))
    assert np.allclose(pieces[-1].position.logits, read(chain(), ids).logits, atol=1e-3)
