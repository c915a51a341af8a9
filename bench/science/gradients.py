"""Training gradients of a network, and the exact gradient of a function of them with respect to the images.

Gradient matching minimises B(G) with G = mean_i grad_theta l(x_i). Its gradient is, with v = dB/dG held fixed,

    dB/dx_i = d/dx_i < v, grad_theta mean l >  =  d/dx_i  D_v [ mean l ](theta)

where D_v is the directional derivative along v in weight space. The right-hand side is one forward pass that carries
tangents and one backward pass to the pixels, so no graph of a backward pass is needed. G and D_v are sums over
images, so both passes are cut into chunks: the result is exact, and memory is bounded by the chunk, not by n.

Where v is a function of G, as here, the last chunk keeps the graph of its backward pass until v is known. Its images
(all of them, if there is one chunk) then cost 7 forward passes instead of 9: the pass to G is not made twice.

In eval mode BatchNorm is affine, so it is folded into the convolution before it. The fold is a function of the weights
with an exact derivative; gradients and tangents pass through it, and the network that does the work has no BatchNorm.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from bench.science.classifier import Classifier
from bench.science.convolution import TwiceDifferentiable

# torch's own forward-mode rules are scripted on first use, which torch itself deprecates; not a user's concern.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

Weights = dict[str, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
"""(logits [n, classes], labels [n]) -> sum of losses."""
Outer = Callable[[Weights], tuple[Tensor, Weights]]
"""(mean gradient) -> B, dB/d gradient."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def inner(a: Weights, b: Weights) -> Tensor:
    """Sum of products over all weights."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


class ParameterGradients:
    """A frozen surrogate as a source of training gradients, over all parameters that require a gradient.

    Built from a network whose weights then must not change. Keys of all Weights are the network's parameter names.
    """

    def __init__(self, model: Classifier) -> None:
        self.weights: Weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if not self.weights:
            raise ValueError("the surrogate has no trainable parameter")
        self._fixed: Weights = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
        self._net, self._pairs = _without_batchnorm(model)
        self._folded: Weights
        self._folded, self._pull = vjp(self._fold, self.weights)[:2]

    def at(self, weights: Weights) -> ParameterGradients:
        """The same network with other weights; BatchNorm keeps its statistics."""
        moved = copy.copy(self)
        moved.weights = {name: value.detach() for name, value in weights.items()}
        moved._folded, moved._pull = vjp(self._fold, moved.weights)[:2]
        return moved

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [n, classes], without a graph."""
        with torch.no_grad():
            return functional_call(self._net, self._folded, (pixels,))

    def _fold(self, weights: Weights) -> Weights:
        """Weights of the network without BatchNorm, as a function of the original ones."""
        everything = {**self._fixed, **weights}
        folded = dict(everything)
        for convolution, norm, module in self._pairs:
            assert module.running_var is not None and module.running_mean is not None
            gain = everything[f"{norm}.weight"] * torch.rsqrt(module.running_var + float(module.eps))
            offset = everything.get(f"{convolution}.bias", torch.zeros_like(gain)) - module.running_mean
            folded[f"{convolution}.weight"] = everything[f"{convolution}.weight"] * gain.view(-1, 1, 1, 1)
            folded[f"{convolution}.bias"] = offset * gain + everything[f"{norm}.bias"]
            del folded[f"{norm}.weight"], folded[f"{norm}.bias"]
        return folded

    def _loss(
        self, folded: Weights, pixels: Tensor, labels: Tensor, n: int, criterion: Criterion | None = None
    ) -> Tensor:
        return (criterion or cross_entropy)(functional_call(self._net, folded, (pixels,)), labels) / n

    def _mean_loss(self, pixels: Tensor, labels: Tensor, weights: Weights) -> Tensor:
        return self._loss(self._fold(weights), pixels, labels, len(pixels))

    def mean(self, pixels: Tensor, labels: Tensor, chunk: int = 256, criterion: Criterion | None = None) -> Weights:
        """grad_theta of the mean loss over images [n, 3, h, w] in [0, 1] with labels [n]. criterion: cross-entropy
        unless given, (logits, labels) -> sum of losses."""
        leaves = self._leaves()
        total = {name: torch.zeros_like(value) for name, value in leaves.items()}
        for some, label in zip(pixels.detach().split(chunk), labels.split(chunk), strict=True):
            loss = self._loss(leaves, some, label, len(pixels), criterion)
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                total[name] += gradient
        return self._unfolded(total)

    def pixel_gradient(self, pixels: Tensor, labels: Tensor, direction: Weights, chunk: int = 256) -> Tensor:
        """d/d pixels of <direction, grad_theta mean cross-entropy>, [n, 3, h, w]."""
        tangent = self._tangent(direction)
        chunks = zip(pixels.detach().split(chunk), labels.split(chunk), strict=True)
        return torch.cat([self._pixel_gradient(some, label, tangent, len(pixels)) for some, label in chunks])

    def slope(self, pixels: Tensor, labels: Tensor, outer: Outer, chunk: int = 256) -> tuple[Tensor, Tensor]:
        """outer(mean gradient) and its gradient in the pixels, [n, 3, h, w]: `mean` and `pixel_gradient` in one, at
        7/9 of their arithmetic for the images of the last chunk."""
        *chunks, (some, label) = zip(pixels.detach().split(chunk), labels.split(chunk), strict=True)
        leaves, leaf = self._leaves(), some.requires_grad_(True)
        with TwiceDifferentiable():
            loss = self._loss(leaves, leaf, label, len(pixels))
            slopes = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        total = {name: slope.detach().clone() for name, slope in zip(leaves, slopes, strict=True)}
        for early, its in chunks:
            loss = self._loss(leaves, early, its, len(pixels))
            for name, slope in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                total[name] += slope
        value, direction = outer(self._unfolded(total))
        tangent = self._tangent(direction)
        gradients = [self._pixel_gradient(early, its, tangent, len(pixels)) for early, its in chunks]
        gradients += torch.autograd.grad(slopes, leaf, [tangent[name] for name in leaves])
        return value, torch.cat(gradients)

    def _pixel_gradient(self, pixels: Tensor, labels: Tensor, tangent: Weights, n: int) -> Tensor:
        """The part of `pixel_gradient` that is of some of n images; tangent: of the folded weights."""
        fixed, leaf = {name: value.detach() for name, value in self._folded.items()}, pixels.requires_grad_(True)
        slope = jvp(lambda weights: self._loss(weights, leaf, labels, n), (fixed,), (tangent,))[1]
        return torch.autograd.grad(slope, leaf)[0]

    def _leaves(self) -> Weights:
        return {name: value.detach().requires_grad_(True) for name, value in self._folded.items()}

    def _unfolded(self, gradient: Weights) -> Weights:
        """The gradient by the weights, from that by the folded ones."""
        return {name: value.detach() for name, value in self._pull(gradient)[0].items()}

    def _tangent(self, direction: Weights) -> Weights:
        """How the folded weights move when the weights move along `direction`."""
        return {name: value.detach() for name, value in jvp(self._fold, (self.weights,), (direction,))[1].items()}

    def curvature(self, pixels: Tensor, labels: Tensor, direction: Weights) -> Weights:
        """The Hessian of the mean cross-entropy over the images times `direction`."""

        product = jvp(grad(partial(self._mean_loss, pixels, labels)), (self.weights,), (direction,))[1]
        return {name: value.detach() for name, value in product.items()}

    def norms(self, pixels: Tensor, labels: Tensor, chunk: int = 16) -> Tensor:
        """Euclidean norm [n] of every image's own training gradient. Memory: chunk times the number of weights."""

        def gradient(folded: Weights, pixel: Tensor, label: Tensor) -> Weights:
            return grad(self._loss)(folded, pixel[None], label[None], 1)

        # Contiguous: torch's float64 convolutions want it for their weights' gradients.
        folded = {name: value.detach().contiguous() for name, value in self._folded.items()}
        norms = []
        for some, label in zip(pixels.detach().split(chunk), labels.split(chunk), strict=True):
            of_folded = vmap(gradient, (None, 0, 0), randomness="same")(folded, some, label)
            of_weights = vmap(lambda slopes: self._pull(slopes)[0])(of_folded)
            squares = [value.flatten(1).square().sum(1) for value in of_weights.values()]
            norms.append(torch.stack(squares).sum(0).sqrt())
        return torch.cat(norms).detach()


def _without_batchnorm(model: Classifier) -> tuple[nn.Module, list[tuple[str, str, nn.BatchNorm2d]]]:
    """A copy in eval mode where every BatchNorm that directly follows a convolution is gone, and the pairs."""
    net = copy.deepcopy(model).eval().requires_grad_(False)
    net.precision = "float32"  # exact, whatever the network was trained in
    pairs = []
    for path, module in list(net.named_modules()):
        if not isinstance(module, nn.Sequential):
            continue
        prefix = f"{path}." if path else ""
        children = list(module.named_children())
        for (name, layer), (next_name, after) in zip(children, children[1:], strict=False):
            if (
                type(layer) is nn.Conv2d
                and type(after) is nn.BatchNorm2d
                and after.affine
                and after.track_running_stats
            ):
                layer.bias = nn.Parameter(torch.zeros_like(after.weight), requires_grad=False)
                setattr(module, next_name, nn.Identity())
                pairs.append((f"{prefix}{name}", f"{prefix}{next_name}", after))
    return net, pairs


def cosine_distance(gradient: Weights, target: Weights) -> tuple[Tensor, Weights]:
    """B = 1 - cos(gradient, target) over all weights together, and v = dB/dgradient (Witches' Brew, eq. 3)."""
    dot, norm = inner(gradient, target), inner(gradient, gradient).sqrt()
    scale = 1 / (norm * inner(target, target).sqrt())
    loss = 1 - dot * scale
    return loss, {name: (dot * scale / norm**2) * gradient[name] - scale * target[name] for name in gradient}


class Matcher:
    """1 - cos(mean training gradient of the poisons, mean training gradient of the targets), mean over surrogates.

    models: frozen surrogates; targets: float [t, 3, h, w], to be classified as target_labels [t]; labels: int64 [n] of
    the poisons; chunk: images differentiated at once.
    """

    def __init__(
        self, models: Sequence[Classifier], targets: Tensor, target_labels: Tensor, labels: Tensor, chunk: int
    ) -> None:
        self.sources = [ParameterGradients(model) for model in models]
        self.aims = [source.mean(targets, target_labels, chunk) for source in self.sources]
        self.labels, self.chunk = labels, chunk

    def with_models(self, models: dict[int, Classifier], targets: Tensor, target_labels: Tensor) -> Matcher:
        """The same with other surrogates in the given places, whose target gradients are recomputed."""
        changed = copy.copy(self)
        changed.sources, changed.aims = list(self.sources), list(self.aims)
        for k, model in models.items():
            changed.sources[k] = ParameterGradients(model)
            changed.aims[k] = changed.sources[k].mean(targets, target_labels, self.chunk)
        return changed

    def slope(self, pixels: Tensor) -> tuple[float, Tensor]:
        """The loss at the poisons `pixels` [n, 3, h, w], and the gradient in them of its sum over surrogates."""
        total, losses = torch.zeros_like(pixels), []
        for source, aim in zip(self.sources, self.aims, strict=True):
            loss, slope = source.slope(pixels, self.labels, partial(cosine_distance, target=aim), self.chunk)
            total += slope
            losses.append(loss)
        return torch.stack(losses).mean().item(), total

    def loss(self, pixels: Tensor) -> float:
        """The loss at the poisons `pixels` [n, 3, h, w]."""
        losses = [
            cosine_distance(source.mean(pixels, self.labels, self.chunk), aim)[0]
            for source, aim in zip(self.sources, self.aims, strict=True)
        ]
        return torch.stack(losses).mean().item()
