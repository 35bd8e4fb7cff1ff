"""The mixers by name. Every one is made as `MIXERS[name](width, **options)`."""

from lm.mixers.attention import Attention
from lm.mixers.base import Mixer, State
from lm.mixers.gru import GRU, GRUReference
from lm.mixers.lstm import LSTM, LSTMReference
from lm.mixers.mamba import Mamba
from lm.mixers.mingru import MinGRU
from lm.mixers.minlstm import MinLSTM
from lm.mixers.s4d import S4D

__all__ = ["MIXERS", "Mixer", "State"]

MIXERS: dict[str, type[Mixer]] = {
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "attention": Attention,
    "mamba": Mamba,
    "s4d": S4D,
    "gru": GRU,
    "lstm": LSTM,
    "gru_reference": GRUReference,
    "lstm_reference": LSTMReference,
}
