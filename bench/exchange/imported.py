"""Poisons that were made elsewhere and brought in by `python -m bench import`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bench.exchange import native
from bench.foundation.registry import register
from bench.foundation.settings import Settings
from bench.science.attack import Attack, Scene
from bench.science.poisons import Poisons


class ImportedSettings(Settings):
    folder: str = Field("", exclude=True, description="folder that `import` wrote; set by --poisons")
    digest: str = Field("", description="sha256 of what it holds")


@register("attack", "imported")
class Imported(Attack):
    """Imported poisons: crafted by another tool, checked on import (clean-label, within eps), then evaluated as usual.

    Not run by this name: `python -m bench run --poisons FOLDER`, with a folder that `python -m bench import` wrote. The
    trials are those of the folder: target, target class and bases. Assumes: the folder. Cost: none.
    """

    Settings = ImportedSettings
    settings: ImportedSettings
    uses_surrogates = False
    crafts = False

    def craft(self, scene: Scene) -> Poisons:
        tensors, meta = native.load(Path(self.settings.folder) / str(scene.trial.index))
        return Poisons.of_tensors(tensors, meta["provenance"])
