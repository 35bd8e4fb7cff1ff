"""The mixers by name. Every one is made as `MIXERS[name](width, **options)`."""

from lm.mixers.attention import Attention
from lm.mixers.base import Mixer, State
from lm.mixers.mingru import MinGRU
from lm.mixers.minlstm import MinLSTM

__all__ = ["MIXERS", "Mixer", "State"]

MIXERS: dict[str, type[Mixer]] = {"mingru": MinGRU, "minlstm": MinLSTM, "attention": Attention}
