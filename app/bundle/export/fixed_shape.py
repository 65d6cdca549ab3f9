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
from app.bundle.export.numeric_file import write_beside
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model import Run, WholeModel, check, whole_model
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
        RecipeError: `lower` fails; the error says at what.
        RayRecError: the file does not compute what the model does.
    """
    whole, length = whole_model(source), events_of(source.checkpoint.model, source.dataset)
    requests = whole.example(3, CANDIDATES, length)  # without history, with half of one, with a full one
    examples = [{name: value[i : i + 1] for name, value in requests.items()} for i in range(3)]
    try:
        content = lower(whole, examples[-1])
    except Exception as error:  # the lowering has no common base for what it cannot do
        raise _refusal(format, source.checkpoint.name, error) from error
    (draft.path / file).write_bytes(content)
    write_beside(source, whole.names, draft.path, ids=ids, candidates=CANDIDATES)
    difference = check(runtime(draft.path / file), whole, examples, file)
    draft.figures |= {**source.figures, "bytes": {format: len(content)}, "difference": difference}
    draft.figures |= {"shape": {"requests": 1, "candidates": CANDIDATES, "history": length}}


def _refusal(format: str, model: str, error: Exception) -> RecipeError:
    if isinstance(error, RecipeError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return RecipeError(
        f"{format} cannot hold the model {model} ({reason[:300]})",
        where="export",
        remedy="use the format bundle or onnx, which hold every model",
    )
