"""A LiteRT model (.tflite) for phones and small devices; needs `pip install 'rayrec[litert]'` and CONVERTER.

`model.tflite` takes the rows of ids of one request with 100 candidates and gives their scores (1, 100);
beside it lie the inputs and the ids, as app.bundle.export.whole_model.numeric_file describes them. Its
inputs are named "args_0", "args_1" and so on, in that order. LiteRT is what TensorFlow Lite became. The file
is a flatbuffer: loading it unpickles nothing.

Rows of ids are int32: the converter turns int64 into it. So a model with more rows than int32 holds is
refused, as is one whose rows take more than the 2 GB of a flatbuffer.

The converter depends on xdsl 0.28.0, which asks for typing-extensions before 4.13, though it runs with later
ones, which other packages need. So pip cannot resolve it, and CONVERTER installs it without dependencies.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from app.artifact import Draft, open_artifact
from app.bundle.export.formats import Score, missing_extra
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.fixed_shape import write_fixed
from app.bundle.export.whole_model.model import Run, WholeModel
from app.bundle.export.whole_model.numeric_file import score_with
from app.bundle.format.layout import Array, damaged
from app.errors import RecipeError

CONVERTER = "pip install --no-deps litert-torch==0.10.0 litert-converter==0.5.0 xdsl==0.28.0"
try:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
except ImportError as error:
    raise missing_extra("litert", error, also=CONVERTER) from error

FILE = "model.tflite"
LARGEST_ID = 2**31 - 1
LARGEST = (2 << 30) - (64 << 20)  # bytes of rows; a flatbuffer ends at 2 GiB


def write(source: ExportSource, draft: Draft) -> None:
    """Write the model; figures: bytes, difference and shape.

    Raises:
        RecipeError: the model is too large for one file, or has an operator that LiteRT lacks.
    """
    _check_ids(source)
    write_fixed(source, draft, format="litert", file=FILE, lower=_lower, runtime=_runtime, ids="int32")


def _check_ids(source: ExportSource) -> None:
    rows = max(source.dataset.schema.users, source.dataset.schema.items)
    if rows - 1 > LARGEST_ID:
        raise RecipeError(
            f"LiteRT holds ids as int32, up to {LARGEST_ID:,}, and this model has {rows:,} rows",
            where="export",
            remedy="use the format bundle or torch_export, whose ids are int64",
        )


def _lower(whole: WholeModel, example: dict[str, Tensor]) -> bytes:
    size = sum(table.nbytes for table in whole.buffers(recurse=False))
    if size > LARGEST:
        raise RecipeError(
            f"a LiteRT file holds 2 GB, and the rows of this model take {size / 2**30:.2f} GiB",
            where="export",
            remedy="use the format bundle, whose rows lie beside the graph",
        )
    litert_torch.config.show_progress = False
    converted = litert_torch.convert(whole, tuple(example.values()))
    with TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        converted.export(str(file))
        return file.read_bytes()


def read(path: Path) -> Score:
    """The model of an export at `path`, in LiteRT's interpreter, on one thread."""
    return score_with(_runtime(open_artifact(path, "litert").path / FILE), path)


def _runtime(file: Path) -> Run:
    try:
        runner = Interpreter(str(file), num_threads=1).get_signature_runner()
    except Exception as error:  # ValueError or RuntimeError of the C++ part
        raise damaged(file, str(error).splitlines()[0]) from None
    kinds = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}

    def run(values: dict[str, Array]) -> Array:
        named = {f"args_{number}": value for number, value in enumerate(values.values())}
        outputs = runner(**{name: named[name].astype(kind, copy=False) for name, kind in kinds.items()})
        scores: Array = next(iter(outputs.values()))
        return scores

    return run
