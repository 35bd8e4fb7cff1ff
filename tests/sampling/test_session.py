"""Sessions: texts read, continued, scored, saved and loaded; Ctrl-C."""

import math
import os
import signal

import numpy as np
import pytest
import torch

from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError
from lm.runs.load import load, locate
from lm.sampling.options import GenerateOptions
from lm.sampling.packed import Packed
from lm.sampling.session import Session, interrupts
from tests.sampling.helpers import TOKENIZER, make, recompute, same


@pytest.fixture
def session() -> Session:
    """A small model that has read nothing, with a vocabulary of A to Z and [\\]."""
    model = make()
    return Session(model, None, TOKENIZER, model, GenerateOptions(chars=12, temperature=1.0))


def write(session: Session) -> list[str]:
    """The text that each sample gets."""
    text: dict[int, str] = {}
    for pieces in session.write(lambda: False):
        for piece in pieces:
            text[piece.sample] = text.get(piece.sample, "") + piece.text
    return [text[i] for i in sorted(text)]


def expected(prompt: str, n: int, **options) -> str:
    return TOKENIZER.decode(recompute(make(), TOKENIZER.encode(prompt), n, **options))


# ---- opening


def test_a_session_opens_with_the_options_given(run, tmp_path):
    path = locate(run)
    session = Session.open(path, GenerateOptions(chars=5, weights="int8"))
    assert isinstance(session.engine, Packed) and session.engine.weights == "int8"
    assert session.seed == 0 and session.positions == []
    session.reseed(5)
    session.read("First")
    write(session)
    session.save(tmp_path / "s")
    loaded = Session.open(path, GenerateOptions(load_state=str(tmp_path / "s")))
    assert loaded.seed == 5 and loaded.positions[0].drawn == 5 and same(loaded.positions[0], session.positions[0])
    reseeded = Session.open(path, GenerateOptions(load_state=str(tmp_path / "s"), seed=0))
    assert reseeded.seed == 0 and reseeded.positions[0].drawn == 0
    assert np.array_equal(reseeded.positions[0].logits, session.positions[0].logits)


def test_a_model_that_writes_no_text_is_refused(run, monkeypatch):
    import lm.sampling.session as module

    model, tokenizer, config = module.load_with_config(locate(run))
    config.data.corpus = "selective_copying"
    monkeypatch.setattr(module, "load_with_config", lambda path: (model, tokenizer, config))
    with pytest.raises(UserError, match="selective_copying, it writes no text"):
        Session.open(locate(run), GenerateOptions())


# ---- reading


def test_every_text_goes_on_with_what_is_read(session):
    session.read("AB")
    session.positions *= 2
    session.read("C")
    assert len(session.positions) == 2 and write(session) == [expected("ABC", 12), expected("ABC", 12, sample=1)]


def test_none_is_the_start_of_a_line_only_where_there_is_no_text(session):
    session.read(None)
    start = session.positions[0]
    session.read(None)
    assert session.positions[0] is start
    session.positions = []
    session.read("")
    assert same(session.positions[0], start)
    session.positions = []
    session.read("A")  # the first character stands for a line's start, as this vocabulary has no line end
    assert same(session.positions[0], start)


def test_characters_never_seen_are_named(session):
    with pytest.raises(UserError, match="characters never seen: 'x' '\u00e9'"):
        session.read("ABx\u00e9x")
    assert session.positions == []


# ---- writing


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.4}], ids=str
)
def test_each_option_of_choosing_is_used(session, options):
    session.options = GenerateOptions(**{"chars": 12, "temperature": 1.0, **options})
    session.read("AB")
    assert write(session) == [expected("AB", 12, **{"temperature": 1.0, **options})]


def test_texts_stay_where_they_end_and_are_continued(session):
    session.read("AB")
    session.options.samples = 3
    first, second = write(session), write(session)
    assert len(session.positions) == 3
    for i in range(3):
        assert first[i] + second[i] == expected("AB", 24, sample=i)
    assert [position.drawn for position in session.positions] == [24] * 3


def test_chars_stop_and_json(session):
    whole = expected("AB", 12)
    session.read("AB")
    session.options.stop, session.options.json = ["~", whole[5:8]], True
    pieces = [pieces[0] for pieces in session.write(lambda: False)]
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(whole[5:8])] and pieces[-1].finish == "stop"
    assert all(len(piece.log_probabilities) == len(piece.text) for piece in pieces)
    session.options.chars, session.options.stop = 0, []  # no end
    calls = iter([False] * 30 + [True])
    assert sum(len(pieces[0].text) for pieces in session.write(lambda: next(calls))) == 30


def test_options_that_do_not_fit_the_number_of_texts(session):
    session.read("A")
    session.check_samples()
    session.options.samples = 5
    session.check_samples()
    session.positions *= 3
    with pytest.raises(UserError, match="holds 3 samples: --samples cannot be 5"):
        session.check_samples()
    session.options.samples = 3
    session.check_samples()
    session.options.samples, session.options.chars = None, 0
    with pytest.raises(UserError, match="holds 3 samples: --chars must then be above 0 without --json"):
        session.check_samples()
    session.options.json = True
    session.check_samples()


def test_a_new_seed_starts_new_streams(session):
    session.read("AB")
    write(session)
    session.positions = session.positions * 2
    start = session.positions[0]
    session.reseed(2**64 - 1)
    assert session.seed == 2**64 - 1 and [position.drawn for position in session.positions] == [0, 0]
    assert np.array_equal(session.positions[1].logits, start.logits)
    session.positions = []
    session.read("AB")
    assert write(session) == [expected("AB", 12, seed=2**64 - 1)]


def test_of_several_texts_the_first_is_kept(session, capsys):
    session.read("A")
    session.keep_first()
    assert capsys.readouterr().err == ""
    session.options.samples = 2
    write(session)
    first = session.positions[0]
    session.keep_first()
    assert session.positions == [first] and "this is the first" in capsys.readouterr().err


# ---- scoring


@torch.no_grad()
def loss(text: str) -> float:
    """The sum of log-probabilities of all characters but the first."""
    ids = torch.from_numpy(TOKENIZER.encode(text).astype(np.int64))
    return -torch.nn.functional.cross_entropy(make()(ids[None, :-1])[0][0], ids[1:], reduction="sum").item()


def test_a_text_is_scored_in_pieces(session):
    text = "AB" + expected("AB", 40)
    count, _, total, unknown = session.score([text[:1], text[1:20], text[20:]])
    assert (count, unknown) == (41, 0) and total == pytest.approx(loss(text), rel=1e-5)
    count, _, total, _ = session.score(["ZZ"])  # after that text
    assert count == 2 and total == pytest.approx(loss(text + "ZZ") - loss(text), rel=1e-4)
    session.positions = []
    assert session.score([]) == (0, 0, 0.0, 0) and session.positions == []
    assert session.score(["A"]) == (0, 0, 0.0, 0) and len(session.positions) == 1


def test_unknown_characters_are_scored_as_the_unknown(session):
    count, _, total, unknown = session.score(["AxByC"])
    assert (count, unknown) == (4, 2) and total == pytest.approx(loss("A\ufffdB\ufffdC"), rel=1e-5)


def test_a_long_piece_is_encoded_bit_by_bit(session):
    class Uniform:
        """Every character has probability 1/30."""

        def init_state(self, batch):
            return ((torch.zeros(batch, 1),),)

        def forward(self, ids, state=None):
            return torch.zeros(*ids.shape, 30), self.init_state(len(ids))

    sizes, encode = [], TOKENIZER.encode
    session.engine, session.tokenizer = Uniform(), CharTokenizer(TOKENIZER.characters)
    session.tokenizer.encode = lambda text: (sizes.append(len(text)), encode(text))[1]
    count, _, total, _ = session.score(["AB" * 100_000])
    assert count == 199_999 and total == pytest.approx(-199_999 * math.log(30), rel=1e-6)
    assert max(sizes) <= 65_536 and sum(sizes) == 200_000


def test_a_state_of_several_texts_cannot_be_scored(session):
    session.read("A")
    session.positions *= 3
    with pytest.raises(UserError, match="--score needs a state of one sample, this one holds 3"):
        session.score(["AB"])


# ---- saving


def test_saved_positions_are_loaded_and_an_empty_session_saves_the_start_of_a_line(run, tmp_path):
    session = Session.open(locate(run), GenerateOptions())
    session.save(tmp_path / "s")
    other = Session.open(locate(run), GenerateOptions())
    other.load(tmp_path / "s")
    model, tokenizer = load(run)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode("\n").tolist()]))[0][0, -1]
    assert len(other.positions) == 1 and np.allclose(other.positions[0].logits, logits.numpy(), atol=1e-5)


# ---- Ctrl-C


def test_the_first_interrupt_is_remembered_and_the_second_acts():
    def handler(*_):
        raise AssertionError

    previous = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts() as interrupted:
            assert not interrupted()
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
        with pytest.raises(ZeroDivisionError), interrupts():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
        with interrupts() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupted() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
