"""minLSTM: an LSTM whose gates ignore the previous state (arXiv 2410.01201, section 3.2).

    f_t = sigmoid(W_f x_t)    i_t = sigmoid(W_i x_t)    h_t = f_t / (f_t + i_t) h_{t-1} + i_t / (f_t + i_t) g(W_h x_t)

With both gates normalised to f' + i' = 1 it is a minGRU whose gate has the logit softplus(-f) - softplus(-i).
"""

import torch

from lm.mixers.mingru import MinGRU
from lm.recurrence import minlstm_scan
from lm.recurrence.portable import Kind


class MinLSTM(MinGRU):
    """[convolution ->] projection -> minLSTM scan [-> down-projection]. Arguments and state as in `MinGRU`."""

    gates = 2
    kind = Kind.MINLSTM
    scan = staticmethod(minlstm_scan)

    @torch.no_grad()
    def bias_gates(self, bias: float) -> None:
        """Raise the forget gate's logit, as the paper's code does."""
        self.projection.bias[: self.hidden] = bias
