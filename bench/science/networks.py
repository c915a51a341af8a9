"""The networks of a study: pretrained ones, the attacker's surrogates, and what attackers and defenses have trained.

Each is trained once and kept in the store under all that shaped it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.foundation import fingerprint
from bench.science.classifier import Classifier, build_network
from bench.science.dataset import Images
from bench.science.defense import Defense, Services
from bench.science.evaluation import ModelPredictor, predict
from bench.science.identity import identities
from bench.science.precision import resolved
from bench.science.seeds import derive
from bench.science.study import Study
from bench.science.training import Recipe, train
from bench.storage.store import Artefact, Made, Store, key_of

Report = Callable[[str, int, int], None]
"""Called as (what is done, steps done, steps in all)."""


@dataclass(frozen=True)
class Start:
    """What a training starts from: weights drawn with `seed`; pretrained: number of the pretrained network of that
    architecture whose features are taken, None for none; classes: of the head."""

    model: str
    seed: int
    classes: int
    pretrained: int | None = None


@dataclass(frozen=True)
class Training:
    """identity: what shapes its outcome, with the seed of order and augmentation; title: for people; behind: a defense
    with its services."""

    identity: dict[str, Any]
    data: Images
    start: Start
    recipe: Recipe
    title: str
    behind: Defense | None = None
    services: Services | None = None


@dataclass(frozen=True)
class Networks:
    """What a study trains, with the store that keeps it."""

    study: Study
    store: Store
    report: Report

    def start_in_scenario(self, model: str, seed: int, j: int = 0) -> Start:
        """Fresh weights, or in `transfer` and `finetune` the features of the j-th pretrained network."""
        return Start(model, seed, len(self.study.dataset.classes), j if self.study.protocol.pretrained else None)

    def start(self, start: Start) -> Classifier:
        """A network that is ready to be trained; its features are frozen in `transfer`."""
        study = self.study
        network = build_network(
            start.model, study.architecture(start.model), classes=start.classes, size=study.size,
            normalisation=study.normalisation, seed=start.seed, device=study.device,
        )  # fmt: skip
        if start.pretrained is None:
            return network
        network.take_features(self.pretrained(start.model, start.pretrained)[0])
        return network.freeze_features() if study.protocol.threat.scenario == "transfer" else network

    def pretrained(self, model: str, j: int = 0) -> tuple[Classifier, Artefact]:
        """The j-th pretrained network of an architecture, with the head of its own data set; in eval mode."""
        source, identity = self.study.pretrain_dataset, identities(self.study).pretrained(model, j)
        start = Start(model, identity["seed"], len(source.classes))
        recipe, title = self.study.protocol.pretrain, f"pretrained {model} {j + 1}"
        return self.trained(Training(identity, source.train, start, recipe, title))

    def surrogate(self, k: int) -> tuple[Classifier, Artefact]:
        """The attacker's k-th network, trained on clean data in the victim's scenario with the surrogates' recipe; in
        eval mode."""
        study = self.study
        title, recipe = f"surrogate {k + 1}/{study.protocol.threat.surrogates}", study.protocol.surrogate
        start = self._surrogate_start(k)
        return self.trained(Training(identities(study).surrogate(k), study.attacker_data, start, recipe, title))

    def right(self) -> Tensor:
        """Ids [m] of the test images that the reference network classifies right, the only ones that may be targets
        with threat.eligible=correct."""
        identity = identities(self.study).right()
        return self.store.get_or_make("kept", key_of(identity), self._make_right).tensors["ids"]

    def _make_right(self) -> Made:
        study, identity = self.study, identities(self.study).reference()
        start = self.start_in_scenario(study.protocol.model, identity["seed"])
        training = Training(identity, study.attacker_data, start, study.protocol.train, "reference network")
        network, artefact = self.trained(training)
        network.precision = resolved(training.recipe.precision, study.device)  # judged as victims are
        test = study.dataset.test
        predictions = predict(ModelPredictor(network), test.images, study.device).argmax(1)
        meta = {"identity": identities(study).right(), "seconds": artefact.meta["seconds"]}
        return {"ids": test.ids[predictions == test.labels]}, meta

    def snapshots(self, k: int, epochs: Sequence[int]) -> tuple[list[Classifier], Artefact]:
        """The k-th surrogate as it was after each of `epochs` of its training, in eval mode. Same training as
        `surrogate`, so the last epoch gives the same weights."""
        identity = identities(self.study).snapshots(k, tuple(epochs))
        make = functools.partial(self._make_snapshots, identity, k, epochs)
        artefact = self.store.get_or_make("networks", key_of(identity), make)
        networks = []
        for epoch in epochs:
            network, prefix = self.start(self._surrogate_start(k)), f"{epoch}/"
            weights = {n.removeprefix(prefix): v for n, v in artefact.tensors.items() if n.startswith(prefix)}
            network.load_state_dict(weights)
            networks.append(network.eval())
        return networks, artefact

    def _make_snapshots(self, identity: dict[str, Any], k: int, epochs: Sequence[int]) -> Made:
        study = self.study
        title = f"snapshots of surrogate {k + 1}/{study.protocol.threat.surrogates}"
        network = self.start(self._surrogate_start(k))
        weights: dict[str, Tensor] = {}

        # Reads the weights between epochs: the loop offers no other place that leaves the training as it is.
        def look(epoch: int, of: int, _: dict[str, float]) -> None:
            self.report(title, epoch, of)
            if epoch in epochs:
                weights.update({f"{epoch}/{name}": value.clone() for name, value in network.state_dict().items()})

        data = study.attacker_data.to(study.device)
        trained = train(network, data, study.protocol.surrogate, seed=identity["seed"], report=look, gathered=weights)
        return weights, {"identity": identity, "history": trained.history, "seconds": trained.seconds}

    def retrained(
        self, k: int, data: Images, names: Sequence[str | int], seed: int, behind: Defense | None = None
    ) -> Classifier:
        """The k-th surrogate, trained from scratch on `data`; behind: a defense that it is trained with."""
        study, recipe = self.study, self.study.protocol.surrogate
        identity = {
            **identities(study).surrogate(k),
            "kind": "retrained",
            "data": data.digest,
            "seed": derive(seed, "retrained", k, *names),
            "behind": None,
        }
        if behind is not None:
            identity["behind"] = [behind.name, behind.settings.as_dict(), fingerprint.code(type(behind))]
        model, j = study.protocol.surrogate_model(k)
        start = self.start_in_scenario(model, derive(identity["seed"], "init"), j)
        title = f"retraining {k + 1}/{study.protocol.threat.surrogates}"
        services = Services(recipe, len(study.dataset.classes), Fit(self, identity["seed"], recipe), self.report, model)
        return self.trained(Training(identity, data, start, recipe, title, behind, services))[0]

    def _surrogate_start(self, k: int) -> Start:
        model, j = self.study.protocol.surrogate_model(k)
        return self.start_in_scenario(model, self.study.surrogate_seed(k), j)

    def trained(self, training: Training) -> tuple[Classifier, Artefact]:
        """The network of a training, from the store or made now and kept; in eval mode."""
        make = functools.partial(self._train, training)
        artefact = self.store.get_or_make("networks", key_of(training.identity), make)
        network = self.start(training.start)
        network.load_state_dict(artefact.tensors)
        return network.eval(), artefact

    def _train(self, training: Training) -> Made:
        trained = train(
            self.start(training.start),
            training.data.to(self.study.device),
            training.recipe,
            seed=training.identity["seed"],
            hooks=training.behind,
            services=training.services,
            report=lambda epoch, epochs, _: self.report(training.title, epoch, epochs),
        )
        meta = {"identity": training.identity, "history": trained.history, "seconds": trained.seconds}
        return dict(trained.model.state_dict()), meta


@dataclass(frozen=True)
class Fit:
    """`fit(data, model, epochs, *names)` of Services: trains on `data` for the first epochs of `recipe`.
    In transfer and finetune a network of the victim's architecture starts as the victim does. on_fit: called with every
    network."""

    networks: Networks
    seed: int
    recipe: Recipe
    prefix: str = ""
    on_fit: Callable[[Artefact], None] = lambda artefact: None

    def __call__(self, data: Images, model: str, epochs: int, *names: str | int) -> Classifier:
        study = self.networks.study
        recipe = self.recipe.model_copy(update={"epochs": epochs})
        as_victim = study.protocol.pretrained and model == study.protocol.model
        identity = {
            **identities(study).surrogate(0),
            "kind": "fit",
            "data": data.digest,
            "start": identities(study).start(model, 0) if as_victim else {"model": model},
            "recipe": recipe.as_dict(),
            "seed": derive(self.seed, "fit", model, *names),
            "code": identities(study).model_code(model),
        }
        start = Start(model, identity["seed"], len(study.dataset.classes), 0 if as_victim else None)
        training = Training(identity, data, start, recipe, f"{self.prefix}{model}")
        network, artefact = self.networks.trained(training)
        network.precision = resolved(recipe.precision, study.device)
        self.on_fit(artefact)
        return network
