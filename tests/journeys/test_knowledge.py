"""What a defense can reach from what it is handed: not the target, the trigger, the bases or the test labels."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.execution.engines.local import Local
from bench.execution.runner import execute
from bench.foundation.registry import register
from bench.science.dataset import Images
from bench.science.defense import Defense, Job, Services
from bench.science.evaluation import ModelPredictor
from bench.science.lending import Lent, lent
from bench.science.study import Study
from bench.science.training import Batch, Run, Trained
from tests.plans import prepare
from tests.tiny import SETS

handed: list[Any] = []


class Curious(Defense):
    """Keeps all that it is ever handed."""

    def jobs(self, data: Images, services: Services) -> Iterator[Job]:
        handed.extend([data, services])
        yield from super().jobs(data, services)

    def setup(self, run: Run) -> None:
        handed.append(run)

    def epoch(self, run: Run, epoch: int) -> None:
        handed.append(run)

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        handed.extend([batch, run])
        return batch

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        handed.extend([losses, batch])
        return losses.mean()

    def finish(self, trained: Sequence[Trained], services: Services) -> ModelPredictor:
        handed.extend([trained, services])
        return ModelPredictor(trained[0].model)


class Informed(Curious):
    needs = ("poison_rate",)


class Holding(Curious):
    """Knows some clean images."""

    needs = ("clean_holdout",)


class Public(Curious):
    """Looks at the images from elsewhere."""

    needs = ("external_model",)
    wants_public = True

    def finish(self, trained: Sequence[Trained], services: Services) -> ModelPredictor:
        assert services.public is not None
        handed.append(services.public())
        return super().finish(trained, services)


def reachable(roots: list[Any]) -> list[Any]:
    """Every object that leads from the roots: attributes, slots, items, closures, bound objects, defaults; not what a
    module holds, which anyone can import, and not classes."""
    seen: dict[int, Any] = {}
    todo = list(roots)
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, types.ModuleType | type | str | bytes | int | float | bool | None):
            continue
        seen[id(item)] = item
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += list(item)
        elif isinstance(item, types.MethodType):
            todo += [item.__self__, item.__func__]
        elif isinstance(item, types.FunctionType):
            todo += [cell.cell_contents for cell in item.__closure__ or () if cell != types.CellType()]
            todo += [item.__defaults__, item.__kwdefaults__]
        else:
            todo.append(getattr(item, "__dict__", None))
            slots = [name for cls in type(item).__mro__ for name in getattr(cls, "__slots__", ())]
            todo += [getattr(item, name, None) for name in slots if name != "__dict__"]
    return list(seen.values())


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Study, list[Any]]]:
    """Runs a tiny sleeper-like trial behind a curious defense; returns its study and all that can be reached."""

    def go(maker: type[Any]) -> tuple[Study, list[Any]]:
        handed.clear()
        name = maker.__name__.lower()
        register("defense", name)(maker)
        plan = prepare("quick", [*SETS, "trials=1"], attack="random-noise-trigger", defenses=[name], only=True)
        (record,) = execute(plan, tmp_path, Local(1, quiet=True), lambda line: None, lambda record: None)
        assert record["status"] == "done", record["error"]
        found = reachable(handed)
        handed.clear()
        return plan.study, found

    return go


@pytest.mark.parametrize("maker", [Curious, Informed, Holding, Public])
def test_nothing_that_is_handed_leads_to_the_secrets(
    run: Callable[..., tuple[Study, list[Any]]], maker: type[Any]
) -> None:
    study, found = run(maker)
    trial = study.case(0).trial
    tensors = [item for item in found if isinstance(item, torch.Tensor)]
    assert len(tensors) > 50  # the walk went into networks, optimizers and batches
    test = study.dataset.test
    for tensor in tensors:
        assert tensor.data_ptr() not in {test.images.data_ptr(), test.labels.data_ptr(), test.ids.data_ptr()}
        assert tensor.shape != trial.base_ids.shape or not torch.equal(tensor.cpu(), trial.base_ids)
        if tensor.dtype == torch.uint8 and tensor.ndim == 4:
            for secret in (test.images[test.rows_of(trial.target_ids)], study.triggered(trial).images):
                same = [(tensor == image).flatten(1).all(1).any() for image in secret]
                assert not any(same)
    names = {type(item).__name__ for item in found}
    assert not names & {
        "Study",
        "Trial",
        "Dataset",
        "Poisons",
        "Shown",
        "Bench",
        "Store",
        "Networks",
        "Protocol",
        "Threat",
    }


def test_the_walk_would_find_a_secret_behind_a_closure(run: Callable[..., tuple[Study, list[Any]]]) -> None:
    """The test above can fail: a function that knows the study leads to it."""
    study, _ = run(Curious)
    found = reachable([lambda: study.case])
    assert "Study" in {type(item).__name__ for item in found}
    secret = study.case(0).trial
    assert any(item is secret for item in reachable([[{"x": (secret,)}]]))


def test_the_poison_rate_is_handed_only_to_those_who_declare_it(run: Callable[..., tuple[Study, list[Any]]]) -> None:
    for maker, expected in [(Curious, {None}), (Informed, {0.05})]:
        _, found = run(maker)
        assert {item.poison_rate for item in found if type(item).__name__ == "Services"} == expected


def test_the_holdout_and_the_public_images_are_handed_only_to_those_who_declare_them(
    run: Callable[..., tuple[Study, list[Any]]],
) -> None:
    expected = {Curious: (False, False), Holding: (True, False), Public: (False, True)}
    for maker, (holdout, public) in expected.items():
        _, found = run(maker)
        services = [item for item in found if type(item).__name__ == "Services"]
        assert services
        assert {item.clean_holdout is not None for item in services} == {holdout}
        assert {item.public is not None for item in services} == {public}


def test_the_holdout_is_clean_and_the_public_images_are_not_those_of_the_test(
    run: Callable[..., tuple[Study, list[Any]]],
) -> None:
    study, found = run(Holding)
    (holdout,) = {
        id(item.clean_holdout): item.clean_holdout for item in found if type(item).__name__ == "Services"
    }.values()
    assert not torch.isin(holdout.ids, study.case(0).trial.base_ids).any()  # this attack poisons all its bases
    clean = study.case(0).clean
    assert torch.equal(holdout.images, clean.images[clean.rows_of(holdout.ids)])
    study, found = run(Public)
    elsewhere = study.public_dataset.train.images
    assert any(isinstance(item, torch.Tensor) and torch.equal(item, elsewhere) for item in found)
    test = {image.numpy().tobytes() for image in study.dataset.test.images if image.float().std() > 1}
    assert len(test) > 40  # the others are flat: a piece of empty sky looks like any other
    assert not test & {image.numpy().tobytes() for image in elsewhere}


def test_a_loan_ends() -> None:
    with lent(lambda a, b=1: a + b) as (borrowed,):
        assert isinstance(borrowed, Lent) and borrowed(2, b=3) == 5
        assert reachable([borrowed]) == [borrowed]
    with pytest.raises(RuntimeError, match="after the trial"):
        borrowed(1)
