"""The networks of a study: pretrained ones, the attacker's surrogates, and what attackers and defenses have trained.

Each is trained once and kept in the store under all that shaped it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.foundation import fingerprint
from bench.foundation.registry import find
from bench.science.classifier import Classifier, build_model
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.seeds import derive
from bench.science.study import Study
from bench.science.training import Recipe, train
from bench.storage.store import Artefact, Store, key_of

Report = Callable[[str, int, int], None]
"""Called as (what is done, steps done, steps in all)."""


@dataclass(frozen=True)
class Networks:
    """What a study trains, with the store that keeps it."""

    study: Study
    store: Store
    report: Report

    def start(self, model: str, seed: int, j: int = 0) -> Classifier:
        """What a training starts from in the study's scenario: fresh weights, or the features of the j-th pretrained
        network of that architecture (frozen in `transfer`) with a fresh head."""
        network = self._build(model, seed, len(self.study.dataset.classes))
        if not self.study.protocol.pretrained:
            return network
        network.take_features(self.pretrained(model, j)[0])
        return network.freeze_features() if self.study.protocol.threat.scenario == "transfer" else network

    def pretrained(self, model: str, j: int = 0) -> tuple[Classifier, Artefact]:
        """The j-th pretrained network of an architecture, with the head of its own data set; in eval mode."""
        identity = self.study.pretrained_identity(model, j)
        source = self.study.pretrain_dataset

        def fresh() -> Classifier:
            return self._build(model, identity["seed"], len(source.classes))

        what = f"pretrained {model} {j + 1}"
        artefact = self._trained(identity, source.train, fresh, self.study.protocol.pretrain, what)
        return self._load(fresh(), artefact), artefact

    def surrogate(self, k: int) -> tuple[Classifier, Artefact]:
        """The attacker's k-th network, trained on clean data in the victim's scenario with the surrogates' recipe; in
        eval mode."""
        identity = self.study.surrogate_identity(k)
        recipe, data = self.study.protocol.surrogate, self.study.attacker_data
        what = f"surrogate {k + 1}/{self.study.protocol.threat.surrogates}"
        artefact = self._trained(identity, data, lambda: self._surrogate_start(k), recipe, what)
        return self._load(self._surrogate_start(k), artefact), artefact

    def snapshots(self, k: int, epochs: Sequence[int]) -> tuple[list[Classifier], Artefact]:
        """The k-th surrogate as it was after each of `epochs` of its training, in eval mode. Same training as
        `surrogate`, so the last epoch gives the same weights."""
        study = self.study
        identity = {**study.surrogate_identity(k), "kind": "snapshots", "epochs": list(epochs)}
        what = f"snapshots of surrogate {k + 1}/{study.protocol.threat.surrogates}"

        def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            network, kept = self._surrogate_start(k), {}

            def look(epoch: int, of: int, _: dict[str, float]) -> None:
                self.report(what, epoch, of)
                if epoch in epochs:
                    kept.update({f"{epoch}/{name}": value.clone() for name, value in network.state_dict().items()})

            recipe, data = study.protocol.surrogate, study.attacker_data.to(study.device)
            done = train(network, data, recipe, seed=identity["seed"], report=look)
            return kept, {"identity": identity, "history": done.history, "seconds": done.seconds}

        artefact = self.store.get_or_make("networks", key_of(identity), make)
        networks = []
        for epoch in epochs:
            network, prefix = self._surrogate_start(k), f"{epoch}/"
            parts = {n.removeprefix(prefix): v for n, v in artefact.tensors.items() if n.startswith(prefix)}
            network.load_state_dict(parts)
            networks.append(network.eval())
        return networks, artefact

    def retrained(self, k: int, data: Images, who: Sequence[str | int], seed: int, behind: Any = None) -> Classifier:
        """The k-th surrogate, trained anew on `data`; behind: a defense that it is trained with. Kept in the store."""
        study = self.study
        identity = {
            **study.surrogate_identity(k),
            "kind": "retrained",
            "data": data.digest,
            "seed": derive(seed, "retrained", k, *who),
            "behind": None,
        }
        if behind is not None:
            identity["behind"] = [behind.name, behind.settings.as_dict(), fingerprint.code(type(behind))]
        model, j = study.protocol.surrogate_model(k)
        recipe = study.protocol.surrogate
        what = f"retraining {k + 1}/{study.protocol.threat.surrogates}"

        def fresh() -> Classifier:
            return self.start(model, derive(identity["seed"], "init"), j)

        fit = self.fitter(identity["seed"], recipe)
        services = Services(recipe, len(study.dataset.classes), fit, self.report, model)
        return self._load(fresh(), self._trained(identity, data, fresh, recipe, what, behind, services))

    def fitter(
        self,
        seed: int,
        recipe: Recipe,
        what: str = "",
        on_fit: Callable[[Artefact], None] = lambda artefact: None,
    ) -> Callable[..., Classifier]:
        """`fit(data, model, epochs, *who)` of Services: trains on `data` for the first epochs of `recipe`. In
        transfer and finetune a network of the victim's architecture starts as the victim does.
        on_fit: told of every network."""
        study = self.study

        def fit(data: Images, model: str, epochs: int, *who: str | int) -> Classifier:
            own = recipe.model_copy(update={"epochs": epochs})
            from_pretrained = study.protocol.pretrained and model == study.protocol.model
            identity = {
                **study.surrogate_identity(0),
                "kind": "fit",
                "data": data.digest,
                "start": study.start_identity(model, 0) if from_pretrained else {"model": model},
                "recipe": own.as_dict(),
                "seed": derive(seed, "fit", model, *who),
                "code": fingerprint.code(find("model", model).make),
            }

            def fresh() -> Classifier:
                if from_pretrained:
                    return self.start(model, identity["seed"])
                return self._build(model, identity["seed"], len(study.dataset.classes))

            artefact = self._trained(identity, data, fresh, own, f"{what}{model}")
            on_fit(artefact)
            return self._load(fresh(), artefact)

        return fit

    def _surrogate_start(self, k: int) -> Classifier:
        model, j = self.study.protocol.surrogate_model(k)
        return self.start(model, self.study.surrogate_seed(k), j)

    def _trained(
        self,
        identity: dict[str, Any],
        data: Images,
        fresh: Callable[[], Classifier],
        recipe: Recipe,
        what: str,
        hooks: Any = None,
        services: Any = None,
    ) -> Artefact:
        def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            done = train(
                fresh(),
                data.to(self.study.device),
                recipe,
                seed=identity["seed"],
                hooks=hooks,
                services=services,
                report=lambda epoch, epochs, _: self.report(what, epoch, epochs),
            )
            meta = {"identity": identity, "history": done.history, "seconds": done.seconds}
            return dict(done.model.state_dict()), meta

        return self.store.get_or_make("networks", key_of(identity), make)

    def _build(self, model: str, seed: int, classes: int) -> Classifier:
        study = self.study
        return build_model(
            model, classes=classes, size=study.size, normalisation=study.normalisation, seed=seed, device=study.device
        )

    @staticmethod
    def _load(network: Classifier, artefact: Artefact) -> Classifier:
        network.load_state_dict(artefact.tensors)
        return network.eval()
