"""Convolutions that can be differentiated twice at the cost of the arithmetic that this takes.

torch's own second derivative of a convolution computes more than a function of weight gradients needs, in an order of
memory that the CPU's kernels do not like. Here the backward pass is a function of its own, whose gradient is two
convolutions for each one of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_convolution = torch.ops.aten.convolution
_backward = torch.ops.aten.convolution_backward
_ONLY_INPUT, _ONLY_WEIGHT, _BOTH = [True, False, False], [False, True, False], [True, True, False]


class TwiceDifferentiable(TorchFunctionMode):
    """Inside, the convolutions of any network are ours; those of a form that ours does not know stay torch's.

    For this and nothing else: the gradient by weights under `create_graph=True`, inside too, then the gradient of a
    function of it by the inputs, without a graph. In that last pass weights get no gradients.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    kind = input.device.type
    if torch.is_autocast_enabled(kind):  # which does not reach into a function of our own
        dtype = torch.get_autocast_dtype(kind)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    form = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    return _Convolution.apply(input, weight, bias, form)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value] * (2 // len(value))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form, ctx.biased = form, bias is not None
        return _convolution(x, weight, bias, *form)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if not torch.is_grad_enabled():  # the last pass, to the inputs
            return _backward(slope, x, weight, None, *ctx.form, _ONLY_INPUT)[0], None, None, None
        of_x, of_weight = _Backward.apply(slope, x, weight, ctx.form, ctx.needs_input_grad[0])
        return of_x, of_weight, slope.sum((0, 2, 3)) if ctx.biased else None, None


class _Backward(torch.autograd.Function):
    """(d/dy, x, weight) -> d/dx, d/dweight."""

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, x: Tensor, weight: Tensor, form: Any, to_x: bool
    ) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(slope, x, weight)
        ctx.form = form
        of_x, of_weight, _ = _backward(slope, x, weight, None, *form, _BOTH if to_x else _ONLY_WEIGHT)
        return of_x, of_weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor | None, of_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, x, weight = ctx.saved_tensors
        to_slope = [
            _convolution(*pair, None, *ctx.form)
            for pair in ((x, of_weight), (of_x, weight))
            if pair[0] is not None and pair[1] is not None
        ]
        to_x = None
        if of_weight is not None and ctx.needs_input_grad[1]:
            to_x = _backward(slope, x, of_weight, None, *ctx.form, _ONLY_INPUT)[0]
        return (sum(to_slope[1:], to_slope[0]) if to_slope else None), to_x, None, None, None
