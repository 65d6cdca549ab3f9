"""A torch.export program (.pt2) for PyTorch and what compiles its programs; opt-in: loading it can unpickle.

`model.pt2` takes rows of ids and gives scores, for any number of requests and candidates; beside it lie the
inputs and the ids, as app.bundle.export.whole_model.numeric_file describes them:

    program = torch.export.load("torch_export/model.pt2").module()
    scores = program(*inputs)   # in the order of description.json

Load only files of your own. `torch.export.load` of torch 2.13 runs code that a file brings: tensors and
constants that the file declares as pickled go through `torch.load(weights_only=False)` and `pickle.loads`, so
do example inputs that `weights_only=True` refuses, sizes are parsed by `sympy.sympify`, which evaluates them,
and compiled libraries are opened. The files written here have none of this: tensors are raw bytes, and there
are no example inputs. But what loads them cannot tell. So `export.unpickle = true` is asked for.
"""

from __future__ import annotations

from pathlib import Path

import torch

from app.artifact import Draft, open_artifact
from app.bundle.export.formats import Score
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.model import Run, check, whole_model
from app.bundle.export.whole_model.numeric_file import score_with, write_beside
from app.bundle.export.whole_model.program import program
from app.bundle.format.layout import Array, damaged

UNPICKLES = True  # see `export_format`
FILE = "model.pt2"


def write(source: ExportSource, draft: Draft) -> None:
    """Write the program; figures: bytes, and difference, how far its scores are from the model's."""
    whole = whole_model(source)
    examples = whole.examples()
    exported = program(whole, examples[-1], dynamic=True)
    exported.example_inputs = None  # they would be the one pickle of the file
    torch.export.save(exported, draft.path / FILE)
    write_beside(source, whole.names, draft.path)
    difference = check(_runtime(draft.path / FILE), whole, examples, FILE)
    size = (draft.path / FILE).stat().st_size
    draft.figures |= {**source.figures, "bytes": {"torch_export": size}, "difference": difference}


def read(path: Path) -> Score:
    """The program of an export at `path`, in PyTorch; runs code that the file brings, see above."""
    file = open_artifact(path, "torch_export").path / FILE
    return score_with(_runtime(file), path)


def _runtime(file: Path) -> Run:
    try:
        module = torch.export.load(file).module()
    except Exception as error:  # of many kinds: zip, JSON and torch's own
        raise damaged(file, str(error).splitlines()[0]) from None

    def run(values: dict[str, Array]) -> Array:
        with torch.no_grad():
            scores: Array = module(*map(torch.from_numpy, values.values())).numpy()
        return scores

    return run
