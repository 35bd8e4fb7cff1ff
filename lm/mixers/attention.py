"""Causal self-attention: the mixer of the Transformer baseline.

Each position attends to itself and the `window - 1` positions before it. With rotary positions keys are stored after
their rotation by the absolute position: the product of two rotations depends on their distance alone (RoFormer, arXiv
2104.09864). Learned positions are the older way, kept to measure what the newer one is worth.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from lm.mixers.base import Mixer, State
from lm.ops import Linear, rms_norm


def rotation(position: Tensor, x: Tensor) -> Tensor:
    """Cosine and sine (2, B, T, 1, N / 2) of each position (B, T) times each channel pair's frequency, for x (..., N).

    Angles are float64: float32 would be off by 0.06 rad after a million characters. They are computed on the CPU, as
    Apple's GPUs have no float64. The result has x's type and device.
    """
    N = x.shape[-1]
    frequency = 10000.0 ** (-torch.arange(0, N, 2, dtype=torch.float64, device="cpu") / N)
    angle = position.cpu().double()[:, :, None, None] * frequency
    return torch.stack([angle.cos(), angle.sin()]).to(x.dtype).to(x.device)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of channels (j, j + N / 2) of x (B, T, H, N)."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Attention(Mixer):
    """Multi-head causal attention over a sliding window.

    Args:
        width: channels of input and output, D.
        heads: number of heads H, each of N = D / H channels, N even; 0 means about width / 32.
        window: how many positions a query attends to, its own included. Training sets it to the context by default.
        positions: "rotary", with queries and keys normalised; or "learned", without: a vector for each position,
            modulo the window, is added to the layer's input, as large at first as that input (GPT-2 adds its only to
            the first layer's). Learned positions have no meaning beyond the window that they were trained in.

    The state is the last `window` keys and values, (B, window, H, N) each, and the position (B,) of the next
    character. Slots before the first position are masked.
    """

    def __init__(self, width: int, heads: int = 0, window: int = 256, positions: str = "rotary") -> None:
        super().__init__()
        fitting = (n for n in range(max(1, width // 32), 0, -1) if width % (2 * n) == 0)
        self.heads = heads or next(fitting, 1)
        if width % (2 * self.heads):
            raise ValueError(f"width {width} cannot be cut into {self.heads} heads of even size")
        self.window = window
        self.query_key_value = Linear(width, 3 * width, bias=False)
        self.output = Linear(width, width, bias=False)
        self.learned = nn.Parameter(torch.randn(window, width)) if positions == "learned" else None
        if self.learned is None:
            self.query_scale = nn.Parameter(torch.ones(width // self.heads))
            self.key_scale = nn.Parameter(torch.ones(width // self.heads))

    def init_state(self, batch: int) -> State:
        weight = self.output.weight
        cache = weight.new_zeros(batch, self.window, self.heads, weight.shape[0] // self.heads)
        return cache, cache.clone(), torch.zeros(batch, dtype=torch.int64, device=weight.device)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if state is None and x.shape[1] <= self.window:
            return self._attend(x, None)
        state = self.init_state(x.shape[0]) if state is None else state
        outputs = []
        for chunk in x.split(self.window, dim=1):  # bounds the mask at window x 2 window
            y, state = self._attend(chunk, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def flops(self, context: int) -> float:
        seen = min(context, self.window) / 2  # the mean over a causal triangle
        return super().flops(context) + 4.0 * seen * self.output.weight.shape[0]

    def _attend(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Attention of at most `window` positions to themselves and the cached ones."""
        B, T, D = x.shape
        first = torch.zeros(1, dtype=torch.int64, device="cpu") if state is None else state[2]
        position = first[:, None] + torch.arange(T, device=first.device)
        if self.learned is not None:
            x = x + self.learned[(position % self.window).to(x.device)].to(x.dtype)
        q, k, v = self.query_key_value(x).view(B, T, 3 * self.heads, -1).chunk(3, dim=2)  # (B, T, H, N)
        if self.learned is None:
            angles = rotation(position, q)
            q, k = (
                rotate(rms_norm(x, scale), angles)  # normalised: logits stay bounded
                for x, scale in ((q, self.query_scale), (k, self.key_scale))
            )
        mask = None
        if state is not None:
            k, v = torch.cat([state[0].to(k.dtype), k], dim=1), torch.cat([state[1].to(v.dtype), v], dim=1)
            mask = self._mask(first, T)
        y = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=mask is None
        )
        y = self.output(y.transpose(1, 2).reshape(B, T, D))
        return y, (self._newest(k), self._newest(v), (first + T).to(x.device).expand(B))

    def _mask(self, first: Tensor, T: int) -> Tensor:
        """Which of the `window` cached and T new keys each of the T queries attends to: (B, 1, T, window + T)."""
        W = self.window
        query = torch.arange(W, W + T, device=first.device)[:, None]
        key = torch.arange(W + T, device=first.device)
        near = (key <= query) & (key > query - W)
        real = key >= W - first[:, None]  # (B, W + T)
        return (near & real[:, None])[:, None]

    def _newest(self, x: Tensor) -> Tensor:
        """The last `window` rows of x (B, n, H, N), zeros before the first."""
        missing = self.window - x.shape[1]
        return pad(x, (0, 0, 0, 0, missing, 0)) if missing > 0 else x[:, -self.window :]
