"""Properties that hold for every input, looked for by hypothesis: tokenizer, data indexing, filters, configuration."""

import contextlib
import io
import math

import numpy as np
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config.options import Config
from lm.config.resolve import KINDS, SECTIONS, from_yaml, parse
from lm.corpora.batches import random_windows, stream, streams, windows
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError
from lm.sampling.filters import Options, choose, min_p, top_k, top_p

unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
rows = st.lists(st.floats(-80, 80), min_size=1, max_size=24).map(lambda values: np.array([values]))
shares = st.floats(0, 1, exclude_min=True)


@given(unicode, unicode)
def test_tokenizer_decodes_what_it_encoded_and_knows_what_it_does_not_know(alphabet, text):
    tokenizer = CharTokenizer(alphabet)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and all(0 <= i <= tokenizer.unknown for i in ids)
    decoded = tokenizer.decode(ids)
    assert all(b == (a if a in tokenizer.characters else "\ufffd") for a, b in zip(text, decoded, strict=True))
    assert (tokenizer.decode(tokenizer.encode(text)) == text) == (not tokenizer.missing(text.replace("\ufffd", "")))
    again = CharTokenizer(tokenizer.characters)
    assert again.characters == tokenizer.characters and again.encode(text).tolist() == ids.tolist()


@given(st.integers(2, 400), st.integers(1, 80), st.integers(1, 500))
def test_each_character_but_the_first_is_scored_once_from_the_one_before_it(length, context, characters):
    ids = np.arange(length)
    for pieces in (windows(ids, context, characters), stream(ids, characters)):
        scored: list[int] = []
        for x, y in pieces:
            assert np.array_equal(y, x + 1) and x.dtype == np.int64
            scored += y.ravel().tolist()
        assert scored == list(range(1, length))


@given(st.integers(1, 60), st.data())
def test_random_windows_are_in_range_and_functions_of_seed_step_and_row(context, data):
    length = data.draw(st.integers(context + 1, 500))
    seed, step = data.draw(st.integers(0, 2**63 - 1)), data.draw(st.integers(0, 2**40))
    first, count = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 8))
    x, y = random_windows(np.arange(length), context, seed, step, range(first, first + count))
    assert x.shape == (count, context) and x.min() >= 0 and y.max() < length and np.array_equal(y, x + 1)
    alone, _ = random_windows(np.arange(length), context, seed, step, range(first, first + 1))
    assert np.array_equal(alone[0], x[0])


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 500), st.integers(0, 60), st.integers(0, 99))
def test_streams_stay_in_their_part_and_go_on_where_they_were(batch, context, extra, step, seed):
    ids = np.arange(batch * (context + 1) + extra)
    (x, y), fresh = streams(ids, context, seed, step, range(batch), batch)
    assert x.shape == (batch, context) and x.min() >= 0 and y.max() < len(ids) and np.array_equal(y, x + 1)
    (after, _), begins = streams(ids, context, seed, step + 1, range(batch), batch)
    assert begins or np.array_equal(after[:, 0], y[:, -1])
    assert fresh or step > 0


@given(rows, st.integers(0, 30))
def test_top_k_keeps_those_with_fewer_than_k_above_them(logits, k):
    kept = top_k(logits, k)[0]
    for value, left in zip(logits[0], kept, strict=True):
        assert np.isfinite(left) == (k == 0 or (logits[0] > value).sum() < k)
    assert np.isfinite(kept).any() and all(a == b for a, b in zip(logits[0], kept, strict=True) if np.isfinite(b))


@given(rows, shares)
def test_top_p_keeps_the_fewest_that_have_p_together(logits, p):
    kept = np.isfinite(top_p(logits, p)[0])
    probability = np.exp(logits[0] - logits[0].max())
    probability /= probability.sum()
    assert kept.any() and probability[kept].sum() >= p - 1e-9
    assert p == 1 or probability[kept].sum() - probability[kept].min() <= p + 1e-9
    assert kept.all() or probability[kept].min() >= probability[~kept].max()


@given(rows, st.floats(0, 1))
def test_min_p_keeps_those_at_least_p_times_as_probable_as_the_first(logits, p):
    kept = np.isfinite(min_p(logits, p)[0])
    for value, left in zip(logits[0] - logits[0].max(), kept, strict=True):
        if p == 0 or abs(value - math.log(p)) > 1e-9:
            assert left == (p == 0 or value >= math.log(p))
    assert kept[logits[0].argmax()]


@given(rows, st.floats(0, 1, exclude_max=True), st.floats(0, 1e3), st.integers(0, 30), shares, st.floats(0, 1))
def test_what_is_chosen_is_an_id_that_every_filter_keeps(logits, uniform, temperature, k, p, minimum):
    (chosen,) = choose(logits, np.array([uniform]), Options(temperature, k, p, minimum))
    assert 0 <= chosen < logits.shape[1]
    if temperature == 0 or k == 1:
        assert logits[0, chosen] == logits[0].max() or temperature > 0
    if temperature > 1e-3:
        scaled = (logits - logits.max()) / temperature
        assert np.isfinite(min_p(top_p(top_k(scaled, k), p), minimum)[0, chosen])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | unicode | st.sampled_from(["mingru", "adamw", 32])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode, inner, max_size=3))
keys = st.sampled_from([*KINDS, *SECTIONS, "version"]) | unicode


def one_line(error: object) -> bool:
    return bool(str(error)) and str(error).isprintable()


@given(st.text(max_size=300) | st.builds("{}: {}".format, keys, st.text(max_size=50)))
def test_any_text_is_a_configuration_or_one_line_of_complaint(text):
    try:
        assert isinstance(from_yaml(text), Config)
    except UserError as error:
        assert one_line(error)


@given(st.dictionaries(keys, values, max_size=4))
def test_any_values_are_a_configuration_or_one_line_of_complaint(record):
    with contextlib.suppress(yaml.YAMLError):
        text = yaml.safe_dump(record)
        try:
            config = from_yaml(text)
            assert from_yaml(config.to_yaml()) == config
        except UserError as error:
            assert one_line(error)


@settings(max_examples=15)  # building the parser takes 20 ms
@given(st.lists(st.tuples(st.sampled_from([*KINDS, "config", "resume"]), st.text(max_size=20)), max_size=3))
def test_any_words_are_a_configuration_or_one_line_and_code_2(options):
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            config, _ = parse([f"--{name}={value}" for name, value in options])
        assert from_yaml(config.to_yaml()) == config
    except SystemExit as stopped:
        assert stopped.code == 2 and told.getvalue().count("\n") == 1


options = st.fixed_dictionaries(
    {},
    optional={
        "name": st.none() | st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9._+=-]{0,30}\Z"),
        "seed": st.integers(0, 2**63 - 1),
        "data.split": st.none() | st.sampled_from(["null", "true", "7", "1e3", "train", "[a]", "~", ".nan", "0x1f"]),
        "eval.prompt": unicode,
        "optim.lr": st.floats(1e-12, 1000),
        "optim.clip": st.integers(0, 5) | st.floats(0, 5),
        "model.compile": st.booleans(),
        "model.mixer": st.just(["mingru", "attention", "gru"]),
        "trainer.max_minutes": st.none() | st.floats(1e-3, 1e6),
    },
)


@given(options)
def test_what_is_written_is_what_is_read(changes):
    config = Config()
    config.update(changes)
    first = from_yaml(config.to_yaml())
    assert {key: first.flat()[key] for key in changes} == changes
    assert from_yaml(first.to_yaml()) == first
