"""The parameters of a search: ranges, logarithms, choices, and what is refused."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lm.analysis.search.space import read_space
from lm.files import UserError


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("optim.muon_lr=log(0.005,0.05)", FloatDistribution(0.005, 0.05, log=True)),
        ("optim.muon_lr=log(1e-4, 1)", FloatDistribution(1e-4, 1, log=True)),
        ("model.dropout=0.0..0.3", FloatDistribution(0.0, 0.3)),
        ("model.dropout=0...3", FloatDistribution(0.0, 0.3)),
        ("model.layers=2..6", IntDistribution(2, 6)),
        ("model.width=log(32,512)", IntDistribution(32, 512, log=True)),
        ("data.batch_size=8|16| 32", CategoricalDistribution(("8", "16", "32"))),
        ("optim.schedule=linear|cosine", CategoricalDistribution(("linear", "cosine"))),
        ("model.mixer=gru|[gru, lstm]", CategoricalDistribution(("gru", "[gru, lstm]"))),
        ("optim.lr=null|0.01", CategoricalDistribution(("null", "0.01"))),
    ],
)
def test_what_is_typed_is_what_optuna_draws_from(word, distribution):
    (parameter,) = read_space([word])
    assert parameter.key == word.partition("=")[0] and parameter.distribution() == distribution


def test_values_are_typed_in_few_digits_and_stay_within_the_bounds():
    rate, layers = read_space(["optim.muon_lr=0.12348..0.5", "model.layers=2..6"])
    assert rate.round(0.3141592653) == 0.3142 and rate.word(0.3142) == "0.3142"
    assert rate.round(0.12349) == 0.1235 and rate.round(0.123481) == 0.1235 and rate.round(0.12344) == 0.12348
    assert layers.round(3) == 3 and layers.word(3) == "3" and layers.extremes == ["2", "6"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.dropout", "--search model.dropout: expected KEY=LOW..HIGH, KEY=log(LOW,HIGH) or KEY=A|B|C"),
        ("model.dropout=", "expected KEY=LOW..HIGH"),
        ("model.dropout=0.1", "expected KEY=LOW..HIGH"),
        ("model.dropout=log(0.1", "expected KEY=LOW..HIGH"),
        ("model.droput=0.0..0.3", "unknown option model.droput; did you mean model.dropout?"),
        ("model.dropout=0.0..1.5", "--search model.dropout must be at least 0 and below 1, not 1.5"),
        ("model.dropout=-1..0.3", "--search model.dropout must be at least 0 and below 1, not -1"),
        ("model.dropout=0.3..0.1", "the lower bound comes first, and the bounds differ"),
        ("model.dropout=0.3..0.3", "the lower bound comes first, and the bounds differ"),
        ("model.dropout=log(0,0.3)", "the logarithm needs bounds above 0"),
        ("model.dropout=0..nan", "--search model.dropout: expected a number, not nan"),
        ("model.layers=1.5..3", "--search model.layers: expected a whole number, not 1.5"),
        ("model.layers=0..3", "--search model.layers must be at least 1, not 0"),
        ("model.layers=1|x", "--search model.layers: expected a whole number, not x"),
        ("model.layers=1|1", "the choices must differ"),
        ("model.layers=1||2", "the choices must differ, and none is empty"),
        ("model.mlp=1..3", "--search model.mlp: expected relu2 or gelu"),
        ("model.mlp=relu2|glu", "did you mean gelu?"),
        ("model.compile=true..false", "a range needs numbers, not true; choices are typed as A|B|C"),
        ("data.column=a..b", "a range needs numbers"),
        ("distill.teachers=a|b", "a list cannot be searched"),
    ],
)
def test_what_is_refused(word, message):
    with pytest.raises(UserError) as refused:
        read_space([word])
    assert message in str(refused.value)


def test_an_option_is_searched_once():
    with pytest.raises(UserError, match=r"--search model\.layers is there twice"):
        read_space(["model.layers=1..2", "model.layers=3..4"])
