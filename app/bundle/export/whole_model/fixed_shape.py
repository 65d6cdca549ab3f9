"""Formats whose files have fixed shapes: one request of CANDIDATES candidates, and a history of fixed length.

The length is that of the longest history that the model reads: `features.history` events or, of a model that
reads the whole past, app.events.WHOLE_PAST. So nothing that counts is cut off; what is shorter is padded, and
more candidates are scored block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from app.artifact import Draft
from app.bundle.export.from_dataset import events_of
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.model import Run, WholeModel, check, whole_model
from app.bundle.export.whole_model.numeric_file import write_beside
from app.errors import RecipeError

CANDIDATES = 100
Lower = Callable[[WholeModel, dict[str, Tensor]], bytes]  # a model and inputs of its fixed shapes -> a file


def write_fixed(
    source: ExportSource,
    draft: Draft,
    *,
    format: str,
    file: str,
    lower: Lower,
    runtime: Callable[[Path], Run],
    ids: str = "int64",
) -> None:
    """Write a file and what lies beside it; figures: bytes, difference, and the shape.

    Args:
        source: what is exported.
        draft: of the artefact.
        format: its name.
        file: name of the file.
        lower: makes its content.
        runtime: opens it, to compare it with the model.
        ids: the type of rows of ids.

    Raises:
        RecipeError: the model cannot be lowered, or its file not be run; the error says at what it failed.
        RayRecError: the file does not compute what the model does.
        DataError: the model's scores are NaN or infinite.
    """
    whole, length = whole_model(source), events_of(source.checkpoint.model, source.dataset)
    requests = whole.example(3, CANDIDATES, length)  # without history, with half of one, with a full one
    examples = [{name: value[i : i + 1] for name, value in requests.items()} for i in range(3)]
    path = draft.path / file
    try:
        path.write_bytes(lower(whole, examples[-1]))
        run = runtime(path)
        run({name: value.numpy() for name, value in examples[-1].items()})
    except RecipeError:
        raise
    except Exception as error:  # neither a lowering nor a runtime has one base for what it cannot do
        raise _refusal(format, source.checkpoint.name, error) from error
    difference = check(run, whole, examples, file)
    write_beside(source, whole.names, draft.path, ids=ids, candidates=CANDIDATES)
    size = path.stat().st_size
    draft.figures |= {**source.figures, "bytes": {format: size}, "difference": difference}
    draft.figures |= {"shape": {"requests": 1, "candidates": CANDIDATES, "history": length}}


def _refusal(format: str, model: str, error: Exception) -> RecipeError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return RecipeError(
        f"{format} cannot hold the model {model} ({reason[:300]})",
        where="export",
        remedy="use the format bundle or onnx, which hold every model",
    )
