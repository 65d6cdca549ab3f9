"""The recipe: a TOML file that drives every stage, as typed models, a module for each group of tables.

Every key has a default except the input files. An unknown key, a wrong type or two keys
at odds raise a RecipeError that names the key, the value and the remedy.
"""

from app.recipe.compress import Compress
from app.recipe.data import AttributeFile, Data, EventSource, Outlier, Split
from app.recipe.evaluate import Evaluate, Export
from app.recipe.features import Features
from app.recipe.section import Section
from app.recipe.serve import Rollout, Serve
from app.recipe.train import ModelSection, Train
from app.recipe.tune import Tune
from app.recipe.whole import Recipe, parse

__all__ = [
    "AttributeFile",
    "Compress",
    "Data",
    "Evaluate",
    "EventSource",
    "Export",
    "Features",
    "ModelSection",
    "Outlier",
    "Recipe",
    "Rollout",
    "Section",
    "Serve",
    "Split",
    "Train",
    "Tune",
    "parse",
]
