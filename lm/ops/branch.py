"""The residual branches of a block, x + f(norm(x)), each as one autograd function around compiled kernels of a CPU.

They compute what the modules compute one after the other, without what PyTorch does between them: at the size of a
small model that is a tenth of a training step, in which one core works while the others wait.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.ops.affine import affine_backward, affine_forward, mlp_backward, mlp_forward
from lm.ops.cpu import convolution_backward, convolution_forward, norm_backward, norm_forward
from lm.recurrence import cpu as recurrence


class MLPBranch(torch.autograd.Function):
    """x + squared_relu(norm(x) up') down'; x (B, T, D) float32, matrices multiplied in `dtype`."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, eps: float, x: Tensor, norm: Tensor, up: Tensor, down: Tensor) -> Tensor:
        normed, scale = norm_forward(x, norm, eps, dtype)
        y, *kept = mlp_forward(normed, up, down, residual=x)
        ctx.save_for_backward(x, norm, scale, normed, up, down, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, norm, scale, *kept = ctx.saved_tensors
        grad = grad.contiguous()
        grad_normed, *grads = mlp_backward(grad, *kept)
        return None, None, *norm_backward(x, norm, scale, grad_normed, grad), *grads


class CellBranch(torch.autograd.Function):
    """x + down(scan(projection(convolution(norm(x))))), the cell of minGRU or minLSTM; x (B, T, D) float32.

    Returns the sum, the state after the last step and the last inputs of the convolution. `taps` (K, D) may be None.
    """

    @staticmethod
    def forward(ctx, dtype, eps, kind, x, h0, past, norm, taps, tap_bias, up, up_bias, down, down_bias):
        _check_state(x, h0, past, taps, down)
        h0 = None if h0 is None else h0.float()
        normed, scale = norm_forward(x, norm, eps, dtype)
        inputs, now = normed, None
        if taps is not None:
            size = len(taps) - 1
            past = normed.new_zeros(x.shape[0], size, x.shape[2]) if past is None else past.to(dtype)
            inputs, now = convolution_forward(normed, past, taps, tap_bias), normed[:, x.shape[1] - size :]
        projection, up_back = affine_forward(inputs, up, up_bias)
        h, last = recurrence.scan_forward(kind, (projection,), h0)
        y, down_back = affine_forward(h, down, down_bias, residual=x)
        ctx.save_for_backward(
            *(x, h0, past, norm, scale, normed, taps, inputs, up, up_back, projection, h, down, down_back)
        )
        ctx.kind = kind
        ctx.set_materialize_grads(False)
        return y, last, now

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_last, grad_now):
        x, h0, past, norm, scale, normed, taps, inputs, up, up_back, projection, h, down, down_back = ctx.saved_tensors
        grad = torch.zeros_like(x) if grad is None else grad.contiguous()
        grad_h, *grads_down = affine_backward(h, down, down_back, grad, True)
        grad_projection = recurrence.empty(projection)
        grad_h0 = recurrence.scan_backward(ctx.kind, projection, (grad_projection,), h, h0, grad_h, grad_last)
        grad_normed, *grads_up = affine_backward(inputs, up, up_back, grad_projection, True)
        grads_past: list[Tensor | None] = [None, None, None]  # of the past, the taps and their bias
        if taps is not None:
            wanted = ctx.needs_input_grad[5]
            grad_normed, *grads_past = convolution_backward(normed, past, taps, grad_normed, wanted)
        if grad_now is not None:
            grad_normed[:, x.shape[1] - grad_now.shape[1] :] += grad_now
        grad_x, grad_norm = norm_backward(x, norm, scale, grad_normed, grad)
        grad_past, *grads_taps = grads_past
        grads = grad_norm, *grads_taps, *grads_up, *grads_down
        return None, None, None, grad_x, None if h0 is None else grad_h0, grad_past, *grads


def _check_state(x: Tensor, h0: Tensor | None, past: Tensor | None, taps: Tensor | None, down: Tensor) -> None:
    """Raises ValueError for a state of another shape, of which the kernels would read what is not there."""
    for name, tensor, shape in (
        ("state", h0, (x.shape[0], down.shape[1])),
        ("past", past, (x.shape[0], 0 if taps is None else len(taps) - 1, x.shape[2])),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"this branch needs a {name} of shape {shape}, not {tuple(tensor.shape)}")
