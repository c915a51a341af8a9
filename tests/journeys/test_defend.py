"""`bench.defend`: a defense on a person's own arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import bench
from bench.foundation.errors import BadInput, TrialFailed
from bench.science.seeds import numpy_stream


def coloured(per_class: int = 20, seed: int = 0, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noise with more red, green or blue: three classes that a small network tells apart. uint8 [n, h, w, 3]."""
    labels = np.arange(3 * per_class) % 3
    noise = numpy_stream(seed, "coloured").integers(0, 96, (len(labels), size, size, 3))
    return (noise + 80 * np.eye(3, dtype=int)[labels][:, None, None, :] + 30).astype(np.uint8), labels


IMAGES, LABELS = coloured()
TEST_IMAGES, TEST_LABELS = coloured(10, seed=1)
KNOWN_CLEAN = coloured(4, seed=2)


@pytest.mark.parametrize(
    ("defense", "more"),
    [
        ("none", {}),
        ("friends-b[start=2]", {}),
        ("epic-0.1", {}),
        ("mixup", {}),
        ("deepknn+noise-u", {"poison_rate": 0.05}),
        ("spectral[rate=0.05]", {}),
    ],
)
def test_a_defended_classifier_learns_what_is_there_to_learn(defense: str, more: dict[str, Any]) -> None:
    classifier = bench.defend(IMAGES, LABELS, defense, epochs=6, device="cpu", **more)
    predicted = classifier.predict(TEST_IMAGES)
    assert predicted.dtype == torch.int64 and predicted.shape == (30,)
    assert (predicted.numpy() == TEST_LABELS).mean() >= 0.9
    pixels = torch.from_numpy(TEST_IMAGES).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(classifier.scores(pixels).argmax(1), predicted)


def test_the_same_seed_gives_the_same_classifier_and_another_seed_another() -> None:
    def scores(seed: int) -> torch.Tensor:
        pixels = torch.from_numpy(TEST_IMAGES).permute(0, 3, 1, 2).float() / 255
        return bench.defend(IMAGES, LABELS, "friends-b[start=1]", epochs=3, seed=seed, device="cpu").scores(pixels)

    assert torch.equal(scores(1), scores(1))
    assert not torch.equal(scores(1), scores(2))


def test_all_forms_of_the_same_images_give_the_same_classifier() -> None:
    tensor = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    forms = (IMAGES, tensor, tensor.numpy(), IMAGES / 255, (IMAGES / 255).astype(np.float32), tensor.float() / 255)
    first, *rest = (bench.defend(form, LABELS, epochs=1, device="cpu").networks[0].state_dict() for form in forms)
    for weights in rest:
        assert all(torch.equal(weights[name], first[name]) for name in first)


def test_settings_and_brackets_are_the_same() -> None:
    one, other = (
        bench.defend(IMAGES, LABELS, name, settings=settings, epochs=1, device="cpu").networks[0].state_dict()
        for name, settings in (("noise-u[mu=5]", None), ("noise-u", {"mu": 5}))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_filter_tells_which_images_it_kept() -> None:
    classifier = bench.defend(IMAGES, LABELS, "spectral", poison_rate=0.1, epochs=2, device="cpu")
    assert 0 < len(classifier.kept_ids) < len(IMAGES) and set(classifier.kept_ids.tolist()) < set(range(len(IMAGES)))


def test_a_refused_image_is_predicted_as_minus_one() -> None:
    classifier = bench.defend(IMAGES, LABELS, "strip", clean_holdout=KNOWN_CLEAN, epochs=4, device="cpu")
    assert set(classifier.predict(TEST_IMAGES).tolist()) <= {-1, 0, 1, 2}
    assert "strip" in classifier.notes


def test_an_external_model_learns_from_the_public_images() -> None:
    settings = {"steps": 4, "width": 8, "batch": 8}
    public = coloured(6, seed=3)
    classifier = bench.defend(IMAGES, LABELS, "denoise-0.1", settings=settings, public=public, epochs=2, device="cpu")
    assert classifier.predict(TEST_IMAGES).shape == (30,)


def test_a_training_that_fails_says_why() -> None:
    with pytest.raises(TrialFailed, match="'strip-filter' left no training sample of class 0"):
        bench.defend(IMAGES, LABELS, "strip-filter", clean_holdout=KNOWN_CLEAN, epochs=6, device="cpu")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": IMAGES[..., 0]}, "images: shape [60, 16, 16]; allowed: [n, 3, h, w] or [n, h, w, 3]; fix: repeat"),
        ({"images": IMAGES[:0]}, "images: shape [0, 16, 16, 3]"),
        ({"images": IMAGES[:, :8]}, "8 by 16 pixels; allowed: square images"),
        ({"images": IMAGES.astype(int)}, "images: torch.int64; allowed: uint8, or float in [0, 1]"),
        ({"images": IMAGES.astype(float)}, "allowed: 0 to 1; fix: divide by 255, or give uint8"),
        ({"images": IMAGES / 255 - 0.5}, "floats from -0.38"),
        ({"images": np.full(IMAGES.shape, np.nan)}, "floats from nan to nan; allowed: 0 to 1"),
        ({"images": ["a"]}, "images: not an array of numbers"),
        ({"labels": LABELS[:5]}, "labels: shape [5]; allowed: one whole number per image, [60]"),
        ({"labels": np.eye(3)[LABELS]}, "labels: shape [60, 3]"),
        ({"labels": LABELS.astype(float)}, "labels: torch.float64; allowed: whole numbers"),
        ({"labels": LABELS - 1}, "labels: -1; allowed: 0 and more"),
        ({"labels": LABELS * 0}, "has 1 class"),
        ({"labels": LABELS * 2}, "class '1' has no train image"),
        ({"classes": 2}, "classes: 2, but labels go up to 2; allowed: at least 3"),
        ({"defense": "frends-b"}, "unknown defense 'frends-b'; did you mean 'friends-b'?"),
        ({"defense": "friends-b[m=1]"}, "unknown key 'defense.m'; did you mean 'mu'?"),
        ({"defense": "friends-b", "settings": {"mu": 0}}, "'defense.mu': 0; allowed: whole number, at least 1"),
        ({"defense": "epic-0.1+epic-0.1"}, "name two or more different defenses"),
        ({"model": "convnt"}, "unknown model 'convnt'; did you mean 'convnet'?"),
        ({"model": 18}, "model: int; allowed: a registered name, or a torch.nn.Module"),
        ({"recipe": {"shft": 1}}, "unknown key 'recipe.shft'; did you mean 'shift'?"),
        ({"recipe": {"shift": 16}}, "recipe.shift: 16 pixels on images of 16; allowed: less than 16"),
        ({"epochs": 0}, "'recipe.epochs': 0; allowed: whole number, at least 1"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"defense": "spectral"}, "defense 'spectral' needs the poison rate; fix: poison_rate=0.01"),
        ({"defense": "spectral", "poison_rate": 1.5}, "poison_rate 1.5; allowed: more than 0, less than 1"),
        ({"defense": "strip"}, "defense 'strip' needs images known to be clean; fix: clean_holdout=(images, labels)"),
        ({"defense": "strip", "clean_holdout": IMAGES}, "clean_holdout: ndarray; allowed: a pair (images, labels)"),
        ({"defense": "strip", "clean_holdout": (IMAGES, LABELS + 1)}, "clean_holdout: labels: 3; allowed: 0 to 2"),
        ({"defense": "strip", "clean_holdout": coloured(2, size=8)}, "images of 8 pixels; allowed: 16"),
        ({"defense": "denoise-0.1"}, "defense 'denoise-0.1' needs images from elsewhere; fix: public=(images, labels)"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_training(changes: dict[str, Any], expected: str) -> None:
    arguments: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "epochs": 1, **changes}
    with pytest.raises(BadInput) as caught:
        bench.defend(**arguments)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def of_nan() -> nn.Module:
    head = nn.Linear(768, 3)
    nn.init.constant_(head.bias, torch.nan)
    return nn.Sequential(nn.Flatten(), head)


class OwnNetwork(nn.Module):
    """As people write them: layers and a head, called in `forward`."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("defense", ["friends-b[start=1]", "spectral[rate=0.05]"])
def test_a_network_of_ones_own_is_trained_from_its_weights_and_left_alone(defense: str) -> None:
    torch.manual_seed(0)
    network = OwnNetwork()
    before = {name: weights.clone() for name, weights in network.state_dict().items()}
    classifier = bench.defend(IMAGES, LABELS, defense, model=network, epochs=10, recipe={"lr": 0.2}, device="cpu")
    assert (classifier.predict(TEST_IMAGES).numpy() == TEST_LABELS).mean() >= 0.9
    assert all(torch.equal(before[name], weights) for name, weights in network.state_dict().items())
    fresh = bench.defend(IMAGES, LABELS, model=network, epochs=1, recipe={"lr": 1e-9}, device="cpu").networks[0]
    assert torch.allclose(fresh.head.weight, network.fc.weight, atol=1e-5)


def test_a_torchvision_network_ends_in_its_linear_layer() -> None:
    network = torchvision.models.resnet18(num_classes=3)
    images = IMAGES.repeat(2, axis=1).repeat(2, axis=2)[:12]
    classifier = bench.defend(images, LABELS[:12], model=network, epochs=1, device="cpu")
    assert classifier.networks[0].head.in_features == 512


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 16), nn.Flatten()), "model: no linear layer behind other layers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), "model: cannot take images of 16 pixels: RuntimeError"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.Softmax(1)), "model: '1' is not its last step"),
        (of_nan(), "model: its scores are not finite; fix: weights without NaN or infinity"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), "model: scores 5 classes, but there are 3"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(network: nn.Module, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        bench.defend(IMAGES, LABELS, model=network, epochs=1, device="cpu")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_of_pairs_is_taken_as_it_is() -> None:
    pairs = [(Image.fromarray(image), int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    ours, theirs = (
        bench.defend(images, labels, epochs=1, device="cpu").networks[0].state_dict()
        for images, labels in ((IMAGES, LABELS), (pairs, None))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(BadInput, match="images: ndarray without labels; allowed: a data set of pairs"):
        bench.defend(IMAGES, device="cpu")


@pytest.mark.parametrize("weights", [torch.float16, torch.float64])
def test_a_network_of_another_precision_is_trained_in_float32(weights: torch.dtype) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).to(weights)
    classifier = bench.defend(IMAGES, LABELS, "none", model=network, epochs=1, device="cpu")
    assert classifier.scores(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
