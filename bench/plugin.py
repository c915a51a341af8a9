"""Everything that a plug-in author imports: `from bench.plugin import Defense, register, ...`.

    every plug-in   register, find, Settings, Field, BadInput, TrialFailed, derive, torch_stream, numpy_stream
    an attack       Attack, Scene, Workshop, Transform, Trial, Threat, Poisons
    its gradients   ParameterGradients, Matcher, Weights, cosine_distance
    a defense       Defense, Services, Job, Report, Run, Batch, Trained, Predictor, ModelPredictor, known_clean
    networks        Classifier, Recipe, build_model, train, make_optimizer, frozen
    data            Dataset, Place, Images, to_pixels; of a person's own files read_regular, open_regular
    caching         code_fingerprint, for what `Services.keep` stores

What an attack or a defense is given, and what it must return, is described at `Attack`, `Scene`, `Defense` and `Run`.
Engines that plug-ins share are in `bench.attacks.crafting` and `bench.defenses.shared`.
"""

from __future__ import annotations

from pydantic import Field

from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.files import open_regular, read_regular
from bench.foundation.fingerprint import code as code_fingerprint
from bench.foundation.registry import find, register
from bench.foundation.settings import Settings
from bench.science.attack import Attack, Scene
from bench.science.classifier import Classifier, build_model, frozen
from bench.science.dataset import Dataset, Images, Place
from bench.science.defense import Defense, Job
from bench.science.evaluation import ModelPredictor, Predictor
from bench.science.gradients import Matcher, ParameterGradients, Weights, cosine_distance
from bench.science.poisons import Poisons
from bench.science.recipe import Recipe
from bench.science.seeds import derive, numpy_stream, torch_stream
from bench.science.services import Report, Services, known_clean
from bench.science.threat import Threat, Trial
from bench.science.training import Batch, Run, Trained, make_optimizer, to_pixels, train
from bench.science.workshop import Transform, Workshop

__all__ = [
    "Attack", "BadInput", "Batch", "Classifier", "Dataset", "Defense", "Field", "Images", "Job", "Matcher",
    "ModelPredictor", "ParameterGradients", "Place", "Poisons", "Predictor", "Recipe", "Report", "Run", "Scene",
    "Services", "Settings", "Threat", "Trained", "Transform", "Trial", "TrialFailed", "Weights", "Workshop",
    "build_model", "code_fingerprint", "cosine_distance", "derive", "find", "frozen", "known_clean", "make_optimizer",
    "numpy_stream", "open_regular", "read_regular", "register", "to_pixels", "torch_stream", "train",
]  # fmt: skip
