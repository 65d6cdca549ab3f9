"""Finds the class of a model: in a file of this folder by its name, or in a file of the user's by its path.

A file is a model if it defines exactly one public subclass of Model; helpers of this folder define none.
A path ends in ".py". Its code is run, so it must be the user's own: a bundle never names one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from app.errors import RecipeError
from app.models.base import Model, ModelConfig
from app.tables.discovery import table_class

MODEL_FILE = "model.py"  # a copy of the user's file, in a checkpoint and in the folder of a run


def model_names() -> list[str]:
    """Names of the models in this folder, sorted."""
    import app.models as folder

    modules = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    return sorted(name for name in modules if _models_in(importlib.import_module(f"app.models.{name}")))


def model_class(source: str) -> type[Model]:
    """The class of a model.

    Args:
        source: NAME of a file `app/models/NAME.py`, or the path of a file of the user's.

    Raises:
        RecipeError: there is no such model; a file of the user's that does not run, or defines no model
            or several.
    """
    if source.endswith(".py"):
        return _only_model(_load(Path(source)), source)
    if not source.isidentifier() or importlib.util.find_spec(f"app.models.{source}") is None:
        raise _unknown(source)
    models = _models_in(importlib.import_module(f"app.models.{source}"))
    if not models:
        raise _unknown(source)
    return models[0]


def source_of(model: type[Model]) -> bytes | None:
    """The content of the user's file that a model was loaded from; None for a model of this folder."""
    source: bytes | None = vars(sys.modules[model.__module__]).get("__source__")
    return source


def model_config(source: str, hyperparameters: dict[str, Any]) -> ModelConfig:
    """Validate hyperparameters against the Config of a model, and those of its tables.

    Raises:
        RecipeError: an unknown or wrong hyperparameter, named; what `model_class` raises.
    """
    kind = model_class(source).Config
    try:
        config = kind.model_validate(hyperparameters)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        raise RecipeError(
            f"{key} = {first['input']!r}: {first['msg']}",
            where=f"model.{key}",
            remedy=f"{Path(source).stem} has {', '.join(kind.model_fields)}",
        ) from None
    table_class(config.table).check(config.table_options)
    return config


def _unknown(name: str) -> RecipeError:
    return RecipeError(
        f"unknown model {name!r}",
        where="model.name",
        remedy=f"choose one of {', '.join(model_names())}, or name a file of your own in model.file",
    )


def _models_in(module: ModuleType) -> list[type[Model]]:
    """The public models that a module defines, as opposed to those that it imports."""
    return [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Model)
        and value is not Model
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def _only_model(module: ModuleType, path: str) -> type[Model]:
    models = _models_in(module)
    if len(models) != 1:
        names = ", ".join(model.__name__ for model in models)
        raise RecipeError(
            f"the file defines {names}" if models else "the file defines no subclass of Model",
            where=path,
            remedy="define exactly one subclass of app.models.base.Model; begin the names of others with _",
        )
    return models[0]


def _load(path: Path) -> ModuleType:
    """Run a file of the user's, once for each content; no bytecode is written beside it."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"the file cannot be read ({error.strerror})", where=str(path), remedy="correct model.file"
        ) from None
    name = f"rayrec_model_{hashlib.sha256(source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    vars(module)["__source__"] = source
    sys.modules[name] = module  # pydantic looks up annotations there
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except Exception as error:
        del sys.modules[name]
        raise _does_not_run(path, error) from None
    return module


def _does_not_run(path: Path, error: Exception) -> RecipeError:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    return RecipeError(
        f"line {line}: {type(error).__name__}: {what}",
        where=str(path),
        remedy="correct the file of the model",
    )
