"""Move the base images towards the target, pixel by pixel. An example to be replaced by your own attack."""

from __future__ import annotations

from pydantic import Field

from bench.foundation.registry import register
from bench.foundation.settings import Settings
from bench.science.attack import Attack, Scene
from bench.science.poisons import Poisons
from bench.science.training import to_pixels

# An attack has one verb, `craft`. What it works with (`attacks/base.py`):
#
#     scene.bases, scene.targets          the images that may be changed, and those to be misclassified
#     scene.train, scene.trial            the clean training set; the classes and ids of this trial
#     scene.surrogates()                  networks that the attacker trained; set uses_surrogates = True
#     scene.augmentation, scene.eps       the victim's augmentation; the largest change of a pixel, in [0, 1]
#     scene.stream("a name")              random numbers, the same for the same seed
#     scene.workshop                      retraining, snapshots of training, a defense's transform
#     scene.report(step, steps, {...})    progress
#     scene.poisons(delta, **facts)       bases + delta as uint8 within eps; the facts go into the record
#
# Class attributes say what the bench must know: uses_surrogates, selects_bases, shows_trigger, snapshots, builds_on.
# Engines to stand on: `attacks/descent.py`, `attacks/feature_matching.py`, `attacks/matching.py`.


class MyAttackSettings(Settings):
    strength: float = Field(1.0, ge=0, le=1, description="share of the way to the target that is tried, within eps")


@register("attack", "my-attack")
class MyAttack(Attack):
    """Blending in pixel space: every base is moved towards the first target as far as eps allows. No paper; a baseline.
    Threat model: clean-label. Needs: the target, no network. Cost: none.
    """

    Settings = MyAttackSettings
    settings: MyAttackSettings
    uses_surrogates = False

    def craft(self, scene: Scene) -> Poisons:
        towards = to_pixels(scene.targets[:1]) - scene.base_pixels()
        delta = (self.settings.strength * towards).clamp(-scene.eps, scene.eps)
        return scene.poisons(delta, mean_change=delta.abs().mean().item())
