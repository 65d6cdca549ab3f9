"""An ONNX graph in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from app.bundle.format.layout import Array, damaged


class Graph:
    """A graph with one output. Safe to run from several threads.

    Args:
        path: the .onnx file.
        threads: of one call. They do not spin, because replicas share the cores.
    """

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a dozen kinds of its own, with no common base
            raise damaged(path, str(error).splitlines()[0]) from None
        self.inputs = frozenset(node.name for node in self._session.get_inputs())
        # The last dimension of each input; a graph has names for the dimensions that may vary.
        self.widths = {node.name: node.shape[-1] for node in self._session.get_inputs()}
        self._output = [self._session.get_outputs()[0].name]

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """The output for `feeds`, which must name the inputs exactly."""
        output: Array = self._session.run(self._output, feeds)[0]
        return output
