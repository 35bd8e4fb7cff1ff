"""Properties of configurations that hold for every input, looked for by hypothesis."""

import contextlib

import yaml
from hypothesis import given
from hypothesis import strategies as st

from lm.config.options import FIELDS, Config
from lm.config.resolve import from_yaml, parse
from lm.files import UserError

unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | unicode | st.sampled_from(["mingru", "adamw", 32])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode, inner, max_size=3))
keys = st.sampled_from([*FIELDS, *vars(Config()), "model.options", "version"]) | unicode


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


@given(st.lists(st.tuples(st.sampled_from([*FIELDS, "config", "resume"]), st.text(max_size=20)), max_size=3))
def test_any_words_are_a_configuration_or_one_line_of_complaint(options):
    try:
        config = parse([f"--{name}={value}" for name, value in options])
        assert from_yaml(config.to_yaml()) == config
    except UserError as error:
        assert one_line(error)


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
