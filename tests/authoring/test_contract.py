"""Every registered plug-in keeps the contract, and the contract test finds plug-ins that do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.authoring.contract import check
from bench.foundation.registry import names

HEAD = """
import torch
from bench.plugin import Attack, Defense, Field, Poisons, Settings, register
"""


@pytest.mark.parametrize("name", [name for name in names("attack") if not name.startswith("test-")])
def test_every_attack_keeps_the_contract(name: str) -> None:
    assert [result for result in check(name) if not result.passed] == []


@pytest.mark.parametrize("name", [name for name in names("defense") if not name.startswith("test-")])
def test_every_defense_keeps_the_contract(name: str) -> None:
    assert [result for result in check(name) if not result.passed] == []


def test_the_worked_example_of_contributing_keeps_the_contract(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "my_mixup.py"
    file.write_text(example)
    results = check(str(file))
    assert len(results) >= 8 and all(result.passed for result in results), results


BROKEN = {
    "other poisons": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack whose random numbers are not its own, for the test of the contract.'''
    uses_surrogates = False
    def craft(self, scene):
        return scene.poisons(torch.rand(scene.bases.images.shape) * scene.eps)
""",
    "more than eps": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack that goes beyond eps by a wide margin, for the test of the contract.'''
    uses_surrogates = False
    def craft(self, scene):
        return Poisons(scene.bases.images ^ 64, scene.bases.ids, scene.bases.labels)
""",
    "of a borrowed model": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack that trains on the surrogates which it was lent, for the test of the contract.'''
    def craft(self, scene):
        with torch.no_grad():
            scene.surrogates()[0].head.weight.mul_(0.5)
        return scene.poisons(torch.zeros_like(scene.base_pixels()))
""",
    "in another mode": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack that leaves a surrogate in training mode, for the test of the contract.'''
    def craft(self, scene):
        scene.surrogates()[0].train()
        return scene.poisons(torch.zeros_like(scene.base_pixels()))
""",
    "handed in place": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack that writes into the training set which it was handed, for the test of the contract.'''
    uses_surrogates = False
    def craft(self, scene):
        scene.train.images.clamp_(max=100)
        return scene.poisons(torch.zeros_like(scene.base_pixels()))
""",
    "docstring": """
@register("defense", "{name}")
class Broken(Defense):
    pass
""",
    "imports bench.storage.store;": """
from bench.storage.store import Store
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that looks into the store, where poisons are, for the test of the contract.'''
""",
    "imports bench.execution;": """
from bench import execution
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that looks at the machinery that runs it, for the test of the contract.'''
""",
    "imports bench.science.lending;": """
import bench.science.lending
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that looks behind what it was lent, for the test of the contract.'''
""",
    "imports gc;": """
def _later():
    import gc
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that looks at every object there is, for the test of the contract.'''
""",
    "opens __closure__": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that opens a function that it was handed, for the test of the contract.'''
    def jobs(self, data, services):
        services.fit.__closure__
        yield from super().jobs(data, services)
""",
    "another classifier": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that draws from the global random state, for the test of the contract.'''
    count = [0]
    def batch(self, batch, run, stage):
        self.count[0] += 1
        batch.pixels = batch.pixels * (1 + 0.5 * (self.count[0] % 7))
        return batch
""",
    "state leaks": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that counts its own trainings and learns less in each, for the test of the contract.'''
    trainings = 0
    def setup(self, run):
        self.trainings += 1
    def loss(self, losses, batch, run):
        return losses.mean() / self.trainings
""",
    "depend on the rest of its batch": """
class Relative:
    def __init__(self, model):
        self.model = model
    def scores(self, pixels):
        scores = self.model(pixels)
        return scores - scores.mean(0)
@register("defense", "{name}")
class Broken(Defense):
    '''A defense whose scores are relative to the other images of a batch, for the test of the contract.'''
    def finish(self, trained, services):
        return Relative(trained[0].model)
""",
    "other requires_grad": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack that freezes a surrogate and leaves it frozen, for the test of the contract.'''
    def craft(self, scene):
        scene.surrogates()[0].requires_grad_(False)
        return scene.poisons(torch.zeros_like(scene.base_pixels()))
""",
    "not JSON serializable": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack that puts a tensor into the provenance of its poisons, for the test of the contract.'''
    uses_surrogates = False
    def craft(self, scene):
        return scene.poisons(torch.zeros_like(scene.base_pixels()), norm=torch.zeros(3))
""",
    "reports step 2 of 1": """
@register("attack", "{name}")
class Broken(Attack):
    '''An attack that reports more progress than there is, for the test of the contract.'''
    uses_surrogates = False
    def craft(self, scene):
        scene.report(2, 1, {})
        return scene.poisons(torch.zeros_like(scene.base_pixels()))
""",
    "global random state": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that draws from the global random state, for the test of the contract.'''
    def jobs(self, data, services):
        torch.rand(1)
        yield from super().jobs(data, services)
""",
    "in place": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that writes into the images that it was handed, for the test of the contract.'''
    def setup(self, run):
        run.data.images.div_(2, rounding_mode="floor")
""",
    "has no description": """
class S(Settings):
    size: int = Field(3, ge=1)
@register("defense", "{name}")
class Broken(Defense):
    '''A defense with a setting that nobody explains, for the test of the contract.'''
    Settings = S
""",
    "unknown needs": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that asks for what no defender has, for the test of the contract.'''
    needs = ("target",)
""",
    "unknown scenario": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense with another default in a scenario that nobody has heard of, for the test of the contract.'''
    by_scenario = {"fine-tune": {}}
""",
    "asks for no training": """
@register("defense", "{name}")
class Broken(Defense):
    '''A defense that never trains anything at all, for the test of the contract.'''
    def jobs(self, data, services):
        return []
""",
}


@pytest.mark.parametrize("finding", BROKEN)
def test_the_contract_test_finds_what_is_broken(finding: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(HEAD + BROKEN[finding].replace("{name}", "test-" + re.sub(r"\W", "-", finding)))
    broken = [result for result in check(str(file)) if not result.passed]
    assert any(finding in result.detail for result in broken), broken


def test_a_plugin_may_use_the_engines_that_plugins_share(tmp_path: Path) -> None:
    file = tmp_path / "masked.py"
    file.write_text(
        HEAD
        + """
from bench.defenses.shared.mixing import OnView
from bench import plugin
@register("defense", "test-shared-engine")
class Masked(OnView):
    '''A defense on an engine that the mixing defenses share, for the test of the contract.'''
    def mixed(self, batch, run, stream):
        batch.pixels = batch.pixels * torch.rand((), generator=stream)
        return batch
"""
    )
    assert [result for result in check(str(file)) if not result.passed] == []


def test_settings_that_a_plugin_does_not_allow_are_not_cut_down(tmp_path: Path) -> None:
    """A stranger's `steps` may mean something else than ours."""
    file = tmp_path / "long.py"
    file.write_text(
        HEAD
        + """
class LongSettings(Settings):
    steps: int = Field(100, ge=50, le=200, description="of a staircase")
    start: float = Field(0.5, ge=0, le=0.9, description="height of the first")
@register("defense", "test-long")
class Long(Defense):
    '''A defense with settings of familiar names and other bounds, for the test of the contract.'''
    Settings = LongSettings
"""
    )
    assert [result for result in check(str(file)) if not result.passed] == []
