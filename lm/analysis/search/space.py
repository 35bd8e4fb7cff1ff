"""The parameters of a search, as they are typed: `--search "optim.muon_lr=log(0.005,0.05)" "model.layers=2..6"`."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_origin

from lm.config.command import read_value
from lm.config.fields import fits, nearest
from lm.config.options import FIELDS
from lm.files import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FORMS = "KEY=LOW..HIGH, KEY=log(LOW,HIGH) or KEY=A|B|C"


@dataclass(frozen=True)
class Parameter:
    """An option of `char-lm train` and where to search for its value: in a range or among choices."""

    key: str
    text: str
    """what is typed after `KEY=`"""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """search in the logarithm"""
    choices: tuple[str, ...] = ()
    """as they are typed; empty for a range"""

    @property
    def extremes(self) -> list[str]:
        """Values that a configuration must accept: the bounds of a range, or all choices."""
        return list(self.choices) or [self.word(self.low), self.word(self.high)]

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are values of the option."""
        return not fits(0.5, FIELDS[self.key].kind)

    def distribution(self) -> "BaseDistribution":
        """Where Optuna draws from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def round(self, value: Any) -> Any:
        """A drawn value with at most four significant digits, so that the command of a trial is easy to read."""
        if isinstance(value, float):
            return min(max(float(f"{value:.4g}"), self.low), self.high)
        return value

    def word(self, value: Any) -> str:
        """A value as it is typed."""
        return str(int(value)) if self.is_whole and not self.choices else str(value)


def read_space(words: list[str]) -> list[Parameter]:
    """The parameters of --search.

    Raises:
        UserError: a word is not of the form `FORMS`, its option is unknown or given twice, or does not take the values.
    """
    space = [_read_parameter(word) for word in words]
    keys = [parameter.key for parameter in space]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"--search {twice[0]} is there twice")
    return space


def _read_parameter(word: str) -> Parameter:
    key, _, text = word.partition("=")
    if not text:
        raise UserError(f"--search {word}: expected {FORMS}")
    if key not in FIELDS:
        raise UserError(f"--search {word}: unknown option {key}{nearest(key, FIELDS)}")
    if get_origin(FIELDS[key].kind) is list:
        raise UserError(f"--search {key}: a list cannot be searched")
    if "|" in text:
        return _read_choices(key, text)
    if found := re.fullmatch(r"(log)\(([^,]+),([^,]+)\)|(.+?)\.\.(.+)", text):
        log = found[1] is not None
        low, high = (_read_bound(key, bound) for bound in found.groups()[1 if log else 3 :][:2])
        if log and low <= 0:
            raise UserError(f"--search {word}: the logarithm needs bounds above 0")
        if low >= high:
            raise UserError(f"--search {word}: the lower bound comes first, and the bounds differ")
        return Parameter(key, text, low, high, log)
    raise UserError(f"--search {word}: expected {FORMS}")


def _read_choices(key: str, text: str) -> Parameter:
    choices = tuple(choice.strip() for choice in text.split("|"))
    if "" in choices or len(set(choices)) < len(choices):
        raise UserError(f"--search {key}={text}: the choices must differ, and none is empty")
    for choice in choices:
        FIELDS[key].check(read_value(choice, FIELDS[key].kind), "--search ")
    return Parameter(key, text, choices=choices)


def _read_bound(key: str, text: str) -> float:
    value = read_value(text.strip(), FIELDS[key].kind)
    FIELDS[key].check(value, "--search ")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"--search {key}: a range needs numbers, not {text}; choices are typed as A|B|C")
    return value
