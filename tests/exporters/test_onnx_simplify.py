"""onnxsim is kept only where nothing is lost: crashes, hangs, renamed layers and changed outputs all leave the original."""

import numpy as np
import onnx
import pytest
from lorita_exporters import onnx_simplify
from lorita_exporters.onnx_file import open_bytes
from lorita_exporters.onnx_simplify import simplify
from onnx import helper, numpy_helper


def small_model() -> onnx.ModelProto:
    """y = relu(x W^T + b), with an addition of zero that can go."""
    random = np.random.default_rng(0)
    arrays = {
        "layer.weight": random.normal(size=(3, 4)).astype(np.float32),
        "layer.bias": random.normal(size=3).astype(np.float32),
        "zero": np.zeros(3, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["input", "layer.weight", "layer.bias"], ["a"], name="layer", transB=1),
            helper.make_node("Add", ["a", "zero"], ["b"], name="add"),
            helper.make_node("Relu", ["b"], ["output"], name="relu"),
        ],
        "network",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(values, name) for name, values in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FEEDS = [{"input": np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32)} for seed in range(3)]
HEAD = "import sys, os, time, signal, onnx\nmodel = onnx.load(sys.argv[1])\n"


def test_kept_where_it_helps() -> None:
    model = small_model()
    simplified, note, error = simplify(model, FEEDS, open_bytes)
    assert note is None
    assert error is not None
    assert 0 <= error <= onnx_simplify.AGREEMENT
    assert [node.name for node in simplified.graph.node] == ["layer", "relu"]
    assert simplified.ir_version == model.ir_version


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("raise RuntimeError('odd graph')", "odd graph"),
        ("time.sleep(60)", "no answer within"),
        ("open(sys.argv[2], 'wb').write(b'rubbish' * 9)", "not applied"),
        ("onnx.save(model, sys.argv[2])", "nothing to simplify"),
        (
            "del model.graph.node[1]; model.graph.node[1].input[0] = 'a'; w = model.graph.initializer[1]\n"
            "w.raw_data = bytes(12); onnx.save(model, sys.argv[2])",
            "outputs differ",
        ),
        (
            "del model.graph.node[1]; model.graph.node[1].input[0] = 'a'; model.graph.initializer[0].name = 'w'\n"
            "model.graph.node[0].input[1] = 'w'; onnx.save(model, sys.argv[2])",
            "renames or removes 2 weights or biases of layers",
        ),
        (
            "del model.graph.node[1]; model.graph.node[1].input[0] = 'a'; model.opset_import[0].version = 18\n"
            "onnx.save(model, sys.argv[2])",
            "opset differs",
        ),
    ],
)
def test_otherwise_the_original_stays(monkeypatch: pytest.MonkeyPatch, program: str, words: str) -> None:
    monkeypatch.setattr(onnx_simplify, "_PROGRAM", HEAD + program)
    model = small_model()
    kept, note, error = simplify(model, FEEDS, open_bytes, timeout_s=2)
    assert kept is model
    assert error is None
    assert note is not None
    assert words in note
