"""Writes towers as ONNX files, for runtimes without torch; needs only the package onnx.

The graphs are built node by node after https://onnx.ai/onnx/operators, opset 17: torch's exporters either fix the
length of a text or are deprecated.
"""

from typing import Any

import numpy as np

from embfast.files.durable import FilePath, replacing

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError("ONNX files need onnx: pip install embfast[onnx]") from error

OPSET, IR = 17, 8


class Graph:
    """Nodes and weights of a graph, named by consecutive numbers."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, array: Any, dtype: type = np.float32) -> str:
        """Adds a weight; returns its name."""
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the names of its outputs, or the name of its only one."""
        names = [f"{kind.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def affine(self, rows: str, layer: Any) -> str:
        """rows @ weight.T + bias."""
        return self.node("Gemm", rows, self.constant(_array(layer.weight)), self.constant(_array(layer.bias)), transB=1)

    def layers(self, rows: str, tower: Any) -> str:
        """The layers of a VectorTower."""
        for i, layer in enumerate(tower.layers):
            rows = self.affine(self.node("Relu", rows) if i else rows, layer)
        return rows

    def into_space(self, rows: str, absolute: bool) -> str:
        """Normalises rows; rows of zeros are kept."""
        lengths = self.node("Max", self.node("ReduceL2", rows, axes=[1], keepdims=1), self.constant(1e-12))
        rows = self.node("Div", rows, lengths)
        return self.node("Abs", rows) if absolute else rows

    def inside(self) -> str:
        """Mask of the words, bool (longest, texts, 1)."""
        longest = self.node("Gather", self.node("Shape", "ids"), self.constant(0, np.int64))
        steps = self.node("Range", self.constant(0, np.int64), longest, self.constant(1, np.int64))
        steps = self.node("Unsqueeze", steps, self.constant([1], np.int64))
        inside = self.node("Less", steps, self.node("Cast", "lengths", to=TensorProto.INT64))
        return self.node("Unsqueeze", inside, self.constant([2], np.int64))

    def pooled(self, rows: str, how: str) -> str:
        """Pools (longest, texts, dim) to (texts, dim), without padding."""
        rows = self.node("Where", self.inside(), rows, self.constant(-np.inf if how == "max" else 0.0))
        if how == "max":
            return self.node("ReduceMax", rows, axes=[0], keepdims=0)
        rows = self.node("ReduceSum", rows, self.constant([0], np.int64), keepdims=0)
        if how == "sum":
            return rows
        lengths = self.node("Cast", "lengths", to=TensorProto.FLOAT)
        return self.node("Div", rows, self.node("Unsqueeze", lengths, self.constant([1], np.int64)))

    def cell(self, words: str, cell: Any) -> tuple[str, str]:
        """A GRU or LSTM: all states (longest, directions, texts, dim) and the last ones (directions, texts, dim)."""
        kind, dim = type(cell).__name__, cell.hidden_size
        order = {"GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}[kind]  # torch: r z n, i f g o; ONNX: z r h, i o f c

        def gates(name: str, suffix: str) -> np.ndarray:
            parts = _array(getattr(cell, f"{name}_l0{suffix}")).reshape(len(order), dim, -1)
            return parts[order].reshape(len(order) * dim, -1)

        suffixes = ["", "_reverse"] if cell.bidirectional else [""]
        w, r = (np.stack([gates(f"weight_{n}", s) for s in suffixes]) for n in ("ih", "hh"))
        b = np.stack([np.concatenate([gates("bias_ih", s)[:, 0], gates("bias_hh", s)[:, 0]]) for s in suffixes])
        options: dict[str, Any] = {
            "hidden_size": dim,
            "direction": "bidirectional" if cell.bidirectional else "forward",
        }
        if kind == "GRU":
            options["linear_before_reset"] = 1
        states, last = self.node(
            kind, words, *(self.constant(part) for part in (w, r, b)), "lengths", outputs=2, **options
        )
        return states, last

    def texts(self, tower: Any) -> str:
        """Any caption tower, before normalisation."""
        words = self.node("Gather", self.constant(_array(tower.words.weight)), "ids")
        kind = type(tower).__name__
        if kind == "MeanTower":
            return self.layers(self.pooled(words, "mean"), tower.map)
        states, last = self.cell(words, tower.cell)
        if kind == "Word2VisualVecTower":
            state = self.node("Squeeze", last, self.constant([0], np.int64))
            read = self.node("Concat", state, self.pooled(words, "mean"), axis=1)
            bag = self.node("Gather", self.constant(_array(tower.bag.weight)), "ids")
            hidden = self.node("Add", self.layers(read, tower.read), self.pooled(bag, "sum"))
            return self.layers(self.node("Relu", hidden), tower.out)
        if tower.pooling == "last":
            return self.node("ReduceMean", last, axes=[0], keepdims=0)
        return self.pooled(self.node("ReduceMean", states, axes=[1], keepdims=0), tower.pooling)

    def write(self, path: FilePath, rows: str, inputs: list[Any], dim: int, metadata: dict[str, str]) -> None:
        """Checks and writes the file; its output is named vectors."""
        self.nodes.append(helper.make_node("Identity", [rows], ["vectors"]))
        output = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", dim])
        graph = helper.make_graph(self.nodes, "embfast", inputs, [output], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        with replacing(path) as stream:
            stream.write(model.SerializeToString())


def write_texts(
    path: FilePath, tower: Any, dim: int, normalise: bool, absolute: bool, metadata: dict[str, str]
) -> None:
    """Writes a caption tower.

    Inputs are ids, int64 (longest, n), with arbitrary padding, and lengths, int32 (n,), which count <end>. The output
    is vectors.
    """
    graph = Graph()
    rows = graph.texts(tower)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["longest", "n"])
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["n"])
    graph.write(path, graph.into_space(rows, absolute) if normalise else rows, [ids, lengths], dim, metadata)


def write_rows(
    path: FilePath, tower: Any, n_in: int, dim: int, normalise: bool, absolute: bool, metadata: dict[str, str]
) -> None:
    """Writes a tower of rows, float32 (n, n_in); the output is vectors."""
    graph = Graph()
    rows = graph.layers("rows", tower)
    inputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", n_in])]
    graph.write(path, graph.into_space(rows, absolute) if normalise else rows, inputs, dim, metadata)


def _array(weight: Any) -> np.ndarray:
    return weight.detach().cpu().numpy()
