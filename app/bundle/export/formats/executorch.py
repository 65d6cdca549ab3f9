"""An ExecuTorch program (.pte) for phones and small devices; needs `pip install 'rayrec[executorch]'`.

`model.pte` takes the rows of ids of one request with 100 candidates and gives their scores (1, 100); beside
it lie the inputs and the ids, as app.bundle.export.whole_model.numeric_file describes them. XNNPACK computes
what it can. ExecuTorch is what PyTorch Mobile became. The file is a flatbuffer: loading it unpickles nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from app.artifact import Draft, open_artifact
from app.bundle.export.formats import Score, missing_extra
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.fixed_shape import write_fixed
from app.bundle.export.whole_model.model import Run, WholeModel
from app.bundle.export.whole_model.numeric_file import score_with
from app.bundle.export.whole_model.program import program
from app.bundle.format.layout import Array, damaged

try:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime
except ImportError as error:
    raise missing_extra("executorch", error) from error

FILE = "model.pte"


def write(source: ExportSource, draft: Draft) -> None:
    """Write the program; figures: bytes, difference and shape."""
    write_fixed(source, draft, format="executorch", file=FILE, lower=_lower, runtime=_runtime)


def _lower(whole: WholeModel, example: dict[str, Tensor]) -> bytes:
    exported = program(whole, example, dynamic=False)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def read(path: Path) -> Score:
    """The program of an export at `path`, in ExecuTorch's runtime, on one thread."""
    return score_with(_runtime(open_artifact(path, "executorch").path / FILE), path)


def _runtime(file: Path) -> Run:
    _unsafe_reset_threadpool(1)
    try:
        method = Runtime.get().load_program(file).load_method("forward")
    except Exception as error:  # RuntimeError with a code of ExecuTorch's
        raise damaged(file, str(error)) from None

    def run(values: dict[str, Array]) -> Array:
        outputs = method.execute([torch.from_numpy(value) for value in values.values()])
        scores: Array = outputs[0].numpy().copy()  # the next call writes over it
        return scores

    return run
