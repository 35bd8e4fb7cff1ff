"""LSTM, the traditional cell that minLSTM is a simplification of (S. Hochreiter and J. Schmidhuber, 1997; forget gate:
F. Gers et al., 2000; here as in torch.nn.LSTM).

    i, f, o = sigmoid(W x_t + U h_{t-1}), each with its own W and U      g = tanh(W_g x_t + U_g h_{t-1})
    c_t = f * c_{t-1} + i * g                                            h_t = o * tanh(c_t)
"""

import torch
from torch import Tensor, nn

from lm.mixers.base import State
from lm.mixers.gru import GRU, GRUReference
from lm.recurrence.portable import widen


class LSTM(GRU):
    """torch.nn.LSTM [-> down-projection]. Arguments as in `GRU`; the state is (h, c), each as the state of `GRU`.

    The forget gate's bias starts at 1: at 0, an LSTM learns long dependences late (R. Jozefowicz et al., 2015).
    """

    gates = 4
    kind = nn.LSTM

    def __init__(self, width: int, expansion: float = 2.0, gate_bias: float = 1.0) -> None:
        super().__init__(width, expansion, gate_bias)

    def init_state(self, batch: int) -> State:
        return super().init_state(batch) + super().init_state(batch)


class LSTMReference(GRUReference, LSTM):
    """The same function as `LSTM`, one step at a time, with weights laid out as in torch.nn.LSTM."""

    def cell_step(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (widen(self.input(x)) + widen(self.recurrent(h.to(x.dtype)))).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
