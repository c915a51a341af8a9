"""The twin of a network that normalises each image on its own: GroupNorm where it has BatchNorm."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

from torch import nn

from bench.plugin import Classifier, TrialFailed

Place = tuple[nn.Module, str, nn.BatchNorm2d]
"""A BatchNorm, with the module that holds it and its name there."""


def trained_batchnorms(model: Classifier) -> list[Place]:
    """The BatchNorms of the trained part. Those of a frozen body are in eval mode and mix no images."""
    return [] if model.features_frozen else list(_batchnorms(model))


def _batchnorms(module: nn.Module) -> Iterator[Place]:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            yield module, name, child
        else:
            yield from _batchnorms(child)


def group_norm_twin(model: Classifier) -> Classifier:
    """A copy with every trained BatchNorm of C channels replaced by GroupNorm of gcd(32, C) groups, and without
    in-place ReLU; all other weights are the same. The network itself if there is nothing to replace.

    TrialFailed for a pretrained network: its weights fit the statistics that BatchNorm has accumulated.
    """
    if not trained_batchnorms(model):
        return model
    twin = copy.deepcopy(model)
    for holder, name, old in trained_batchnorms(twin):
        if old.num_batches_tracked is not None and old.num_batches_tracked > 0:
            raise TrialFailed(
                "a network that was pretrained with BatchNorm has no GroupNorm twin, and its BatchNorm mixes the "
                "samples of a batch; fix: --set threat.scenario=transfer, or a model without it, --set model=lenet"
            )
        new = nn.GroupNorm(math.gcd(32, old.num_features), old.num_features, eps=old.eps, affine=old.affine)
        new.to(next(model.parameters()))
        if old.affine:
            new.load_state_dict({"weight": old.weight, "bias": old.bias})
        setattr(holder, name, new)
    for module in twin.modules():
        if getattr(module, "inplace", False):  # it would overwrite what the layer before needs for its gradient
            module.inplace = False  # type: ignore[assignment]
    return twin.train(model.training)
