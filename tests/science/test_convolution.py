"""Our convolution against torch's: its value, the gradient by weights, and the gradient of a function of that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.science.convolution import TwiceDifferentiable

FORMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((4, 3, 3, 3), {}),
    "strided": ((4, 3, 3, 3), {"stride": 2, "padding": (1, 0)}),
    "dilated": ((4, 3, 3, 3), {"dilation": 2, "padding": [2]}),
    "grouped": ((6, 1, 3, 3), {"groups": 3, "padding": 1}),
    "one by one": ((4, 3, 1, 1), {"stride": (2, 1)}),
}


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, dtype=torch.float64, generator=chance).to(dtype) for size in ((2, 3, 7, 7), shape, shape[:1])
    )
    return x.requires_grad_(True), weight.requires_grad_(True), bias.requires_grad_(True)


def value_and_slope(x: Tensor, weight: Tensor, bias: Tensor, form: dict[str, Any]) -> list[Tensor]:
    """The output of two uses of a convolution, the gradients of a loss, and of a function of these by the input."""
    y = F.conv2d(x.tanh(), weight, bias, **form)
    slopes = torch.autograd.grad(y.pow(3).sum(), [weight, bias], create_graph=True)
    return [y.detach(), *(slope.detach() for slope in slopes), *torch.autograd.grad(slopes, x, [weight, bias])]


@pytest.mark.parametrize("form", FORMS)
def test_value_and_both_derivatives_are_those_of_torch(form: str) -> None:
    shape, options = FORMS[form]
    expected = value_and_slope(*tensors(shape), options)
    with TwiceDifferentiable():
        assert "_Convolution" in F.conv2d(*tensors(shape), **options).grad_fn.name()  # type: ignore[union-attr]
        found = value_and_slope(*tensors(shape), options)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_form_that_is_not_known_stays_torchs() -> None:
    x, weight, bias = tensors((4, 3, 3, 3))
    expected = value_and_slope(x, weight, bias, {"padding": "same"})
    with TwiceDifferentiable():
        found = value_and_slope(x, weight, bias, {"padding": "same"})
        single = F.conv2d(x[0], weight, bias)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(single, F.conv2d(x[0], weight, bias))


def test_autocast_is_followed() -> None:
    x, weight, bias = tensors((4, 3, 3, 3), torch.float32)
    expected = value_and_slope(x, weight, bias, {})
    with TwiceDifferentiable(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_slope(x, weight, bias, {})
    assert [value.dtype for value in found] == [torch.bfloat16, *3 * [torch.float32]]
    for one, other in zip(found, expected, strict=True):
        assert 0 < (one - other).norm() / other.norm() < 0.03


def test_outside_convolutions_are_torchs() -> None:
    with TwiceDifferentiable():
        pass
    assert "_Convolution" not in F.conv2d(*tensors((4, 3, 3, 3))).grad_fn.name()  # type: ignore[union-attr]
