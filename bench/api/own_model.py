"""A person's own network as a `Classifier`: checked, and refused in one line with the repair."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bench.foundation.errors import BadInput
from bench.science.classifier import Classifier, Normalise


def as_classifier(
    network: nn.Module, classes: int, size: int, normalisation: tuple[tuple[float, ...], tuple[float, ...]]
) -> Classifier:
    """A copy of `network`, with its weights, behind the normalisation; its last linear layer is the head.

    network: pixels [n, 3, size, size], normalised, to logits [n, classes]; the features that some defenses look at are
    what its last `nn.Linear` is given. Its weights become float32, as pixels are. BadInput where that is not so, tried
    on two images, or its scores are not finite.
    """
    body = copy.deepcopy(network).float().eval()
    linear = [name for name, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not linear or not linear[-1]:
        raise BadInput("model: no linear layer behind other layers; fix: end the network in an nn.Linear")
    parent, _, name = linear[-1].rpartition(".")
    head = getattr(body.get_submodule(parent), name)
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(next(body.parameters()).device)
    try:
        with torch.no_grad():
            logits = body(pixels)
            setattr(body.get_submodule(parent), name, nn.Identity())
            features = body(pixels)
            finite = bool(torch.isfinite(logits).all())
            split = features.ndim == 2 and torch.equal(head(features), logits)
    except Exception as error:  # another person's code may raise anything
        text = " ".join(str(error).split())
        raise BadInput(f"model: cannot take images of {size} pixels: {type(error).__name__}: {text}") from None
    if not finite:
        raise BadInput("model: its scores are not finite; fix: weights without NaN or infinity")
    if not split:
        raise BadInput(f"model: '{linear[-1]}' is not its last step; fix: end the network in that nn.Linear")
    if logits.shape != (2, classes):
        raise BadInput(f"model: scores {logits.shape[1]} classes, but there are {classes}; fix: classes=, or the head")
    classifier = Classifier(Normalise(*normalisation), body, head)
    return classifier.requires_grad_(True).to(memory_format=torch.channels_last)
