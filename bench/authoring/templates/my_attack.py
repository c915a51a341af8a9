"""Move the base images towards the target, pixel by pixel. An example: replace it with your own attack."""

from __future__ import annotations

from bench.plugin import Attack, Field, Poisons, Scene, Settings, register, to_pixels

# An attack has one verb, `craft`. What it works with:
#
#     scene.bases, scene.targets          the images that may be changed, and those to be misclassified
#     scene.train, scene.trial            the clean training set; the classes and ids of this trial
#     scene.surrogates()                  networks that the attacker trained; set uses_surrogates = True
#     scene.augmentation, scene.eps       the victim's augmentation; the largest change of a pixel, in [0, 1]
#     scene.stream("a name")              random numbers, the same for the same seed
#     scene.workshop                      retraining, snapshots of training, a defense's transform
#     scene.report(done, total, {...})    progress
#     scene.poisons(delta, **facts)       bases + delta as uint8 within eps; the facts go into the record
#
# Class attributes declare what the bench must provide: uses_surrogates, selects_bases, shows_trigger, snapshots,
# builds_on. Engines to build on, in bench.attacks.crafting: descent, feature_matching, matching.


class MyAttackSettings(Settings):
    strength: float = Field(1.0, ge=0, le=1, description="share of the way to the target that is tried, within eps")


@register("attack", "my-attack")
class MyAttack(Attack):
    """Blending in pixel space: every base is moved towards the first target as far as eps allows. No paper; a baseline.
    Threat model: clean-label. Assumes: the target; no network. Cost: none.
    """

    Settings = MyAttackSettings
    settings: MyAttackSettings
    uses_surrogates = False

    def craft(self, scene: Scene) -> Poisons:
        difference = to_pixels(scene.targets[:1]) - scene.base_pixels()
        delta = (self.settings.strength * difference).clamp(-scene.eps, scene.eps)
        return scene.poisons(delta, mean_change=delta.abs().mean().item())
