"""What the filters share: a warm-up network on the poisoned set, its features, and a training on the filtered set.

The warm-up network is the same for all filters of a trial and is cached, so that only the first one pays for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.defenses.shared.outputs import outputs_of
from bench.plugin import Classifier, Defense, Images, Job, Services, TrialFailed


class Filter(Defense):
    """Trains a network on all samples, drops those that look poisoned, and has the victim trained on the rest."""

    def kept(self, features: Tensor, labels: Tensor, services: Services) -> Tensor:
        """Which samples stay, bool [n]. features: float [n, d]; labels: int64 [n]; samples in the order of their
        ids."""
        raise NotImplementedError

    def kept_by(self, model: Classifier, data: Images, services: Services) -> Tensor:
        """The same, for filters that need more of the warm-up network than its features. data: in the order of ids."""
        return self.kept(features_of(model, data.images), data.labels, services)

    def jobs(self, data: Images, services: Services) -> Iterable[Job]:
        # By id, so that the order of the training set cannot change the result.
        ordered = data.subset(torch.argsort(data.ids))
        model = services.fit(ordered, services.model, services.recipe.epochs, "warm-up")
        keep = self.kept_by(model, ordered, services)
        remaining = torch.bincount(ordered.labels[keep], minlength=services.classes)
        for label in torch.nonzero(remaining == 0).flatten().tolist():
            raise TrialFailed(f"defense '{self.name}' left no training sample of class {label}")
        yield Job(data.subset(torch.isin(data.ids, ordered.ids[keep])))


def features_of(model: Classifier, images: Tensor, chunk: int = 1024) -> Tensor:
    """Penultimate features, float32 [n, d], of uint8 images: eval mode, un-augmented. TrialFailed if not finite."""
    features = outputs_of(model, images, model.features, chunk)
    if not torch.isfinite(features).all():
        raise TrialFailed("the warm-up network's features are not finite")
    return features


def declared_rate(services: Services, setting: float) -> float:
    """The poison rate that is set, or else the one that the threat model declares."""
    if setting:
        return setting
    if services.poison_rate is None:
        raise TrialFailed("the poison rate is neither set nor declared; fix: --set defense.rate=...")
    return services.poison_rate
