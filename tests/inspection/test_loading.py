"""Would it load there? Each rule by a small model that breaks it alone, next to one that does not."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from small_onnx import write_small_onnx

from lorita_deploy.cli import cli
from lorita_deploy.inspection.loading import check_loading
from lorita_deploy.records import LoadCheck
from lorita_deploy.targets import load_target, read_target


def relu(**more):
    return helper.make_node("Relu", ["x"], ["y"], **more)


def model_of(*nodes, weights=(), opset=13, ir=7, dtype=TensorProto.FLOAT, out=TensorProto.FLOAT, shape=(1, 4), **more):
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", out, shape)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **more)


@pytest.fixture
def judge(tmp_path):
    """``judge(model, "jetson")``: findings that are not ok, as {subject: (state, found, fix)}."""

    def run(model, name):
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        found = check_loading(path, load_target(name))
        return {each.subject: (each.state, each.found, each.fix) for each in found.findings if each.state != "ok"}

    return run


def test_what_fits_everywhere_has_no_findings(judge):
    for name in ("cpu", "arm64", "raspberry-pi-5", "cuda", "jetson-nano", "jetson-thor@jp7.2-trt11"):
        assert judge(model_of(relu()), name) == {}


def test_opset_and_ir_version(judge):
    newer = model_of(relu(), opset=21, ir=10)
    state, found, fix = judge(newer, "jetson@jp6.2")["opset"]
    assert (state, found) == ("wrong", "21; jetson-orin-nano@jp6.2 reads up to 20")
    assert "--target jetson-orin-nano@jp6.2" in fix
    assert judge(newer, "jetson@jp6.2")["IR version"][0] == "note", "TensorRT warns"
    assert judge(newer, "cpu")["IR version"][0] == "wrong", "ONNX Runtime refuses"
    assert judge(newer, "jetson-thor") == {}
    assert judge(model_of(relu(), opset=20, ir=9), "jetson@jp6.2") == {}


def test_onnx_runtime_really_refuses_a_newer_ir_version(tmp_path):
    """The rule behind the finding, at the edge of the installed ONNX Runtime."""
    import onnxruntime

    model = model_of(relu(), ir=99)
    with pytest.raises(Exception, match="IR version"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_operators_that_this_tensorrt_does_not_import(judge):
    gelu = model_of(helper.make_node("Gelu", ["x"], ["y"]), opset=20, ir=9)
    state, found, fix = judge(gelu, "jetson@jp6.2")["operators"]
    assert state == "wrong"
    assert "Gelu (1x)" in found
    assert "--opset 13" in fix
    assert "TensorRT 10.15" in fix
    assert "operators" not in judge(gelu, "jetson@jp7.2")
    assert "operators" not in judge(gelu, "cpu")
    det = model_of(helper.make_node("Det", ["x"], ["y"]), shape=(2, 2))
    assert judge(det, "jetson")["operators"][2] == "rewrite that part of the network with other operators"


def test_operators_outside_the_standard(judge):
    theirs = model_of(helper.make_node("FastGelu", ["x"], ["y"], domain="com.microsoft"))
    theirs.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert judge(theirs, "jetson")["operators"][0] == "wrong"
    assert judge(theirs, "cpu") == {}
    mine = model_of(helper.make_node("FastGelu", ["x"], ["y"], domain="my.own"))
    mine.opset_import.append(helper.make_opsetid("my.own", 1))
    assert "my.own" in judge(mine, "cpu")["operators"][1]


def test_functions_of_the_model(judge):
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("my.own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    model = model_of(helper.make_node("Twice", ["x"], ["y"], domain="my.own"), functions=[function], ir=8)
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    assert judge(model, "jetson-xavier-nx")["functions"][0] == "wrong"
    assert judge(model, "jetson@jp6.2") == {}


def test_operators_inside_a_branch_count(judge):
    def branch(name, op):
        inner = [helper.make_node(op, ["x"], [f"{name}_y"])]
        return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, (2, 2))])

    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch("then", "Relu"), else_branch=branch("else", "Hardmax"))
    model = model_of(choose, weights={"c": np.array(True)}, shape=(2, 2))
    assert "Hardmax" in judge(model, "jetson-xavier-nx")["operators"][1]
    assert "operators" not in judge(model, "jetson@jp6.2")


@pytest.mark.parametrize(
    ("dtype", "target", "state"),
    [
        (TensorProto.STRING, "jetson", "wrong"),
        (TensorProto.COMPLEX64, "jetson", "wrong"),
        (TensorProto.BFLOAT16, "jetson-nano", "wrong"),
        (TensorProto.BFLOAT16, "jetson@jp6.2", None),
        (TensorProto.DOUBLE, "jetson", "note"),
        (TensorProto.UINT8, "jetson", None),
        (TensorProto.UINT8, "jetson-nano", "wrong"),
        (TensorProto.INT64, "jetson-nano", None),
        (TensorProto.STRING, "cpu", None),
    ],
    ids=str,
)
def test_types_of_inputs(judge, dtype, target, state):
    model = model_of(helper.make_node("Identity", ["x"], ["y"]), dtype=dtype, out=dtype)
    assert judge(model, target).get("types", (None,))[0] == state


def test_bytes_are_for_inputs_only(judge):
    inside = model_of(
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.UINT8), helper.make_node("Cast", ["a"], ["y"], to=1)
    )
    assert judge(inside, "jetson")["types"][0] == "wrong"


def test_half_precision(judge):
    weights = {"w": np.ones(4, np.float16)}
    half = model_of(helper.make_node("Mul", ["x", "w"], ["y"]), weights=weights, dtype=10, out=10)
    assert judge(half, "jetson-nano") == {}
    assert judge(half, "raspberry-pi-5")["precision"][0] == "note"


def quantized(zero, dtype=np.int8):
    weights = {"s": np.float32(0.1), "z": dtype(zero)}
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    return model_of(quantize, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]), weights=weights)


def integer_bias():
    weights = {"b": np.ones(4, np.int32), "s": np.float32(0.1), "z": np.int32(0)}
    dequantize = helper.make_node("DequantizeLinear", ["b", "s", "z"], ["f"])
    return model_of(dequantize, helper.make_node("Add", ["x", "f"], ["y"]), weights=weights)


def test_quantization(judge):
    assert judge(quantized(0), "jetson") == {}
    state, found, fix = judge(quantized(3), "jetson")["quantization"]
    assert state == "wrong"
    assert "2 zero points are not 0" in found
    assert "symmetric" in fix
    assert "uint8" in judge(quantized(0, np.uint8), "jetson")["types"][1]
    assert judge(quantized(0, np.uint8), "jetson@jp7.2") == {}
    found, fix = judge(integer_bias(), "jetson")["quantization"][1:]
    assert "DequantizeLinear of b, stored as int32" in found
    assert "QuantizeBias=False" in fix
    assert judge(integer_bias(), "raspberry-pi-5") == {}
    assert judge(quantized(3), "raspberry-pi-5") == {}, "ONNX Runtime takes any zero point"
    assert "no int8 arithmetic" in judge(quantized(0), "jetson-nano")["quantization"][1]


def test_computed_zero_points_cannot_be_judged(judge):
    model = quantized(0)
    model.graph.node.insert(0, helper.make_node("Identity", ["z"], ["z2"]))
    for node in model.graph.node[1:]:
        node.input[2] = "z2"
    assert judge(model, "jetson")["quantization"][0] == "note"


def test_open_dimensions(judge):
    model = model_of(relu(), shape=("batch", 4))
    state, found, fix = judge(model, "jetson")["shapes"]
    assert state == "note"
    assert "open dimensions in x" in found
    assert "--minShapes" in fix
    assert judge(model, "cpu") == {}


def pooled():
    pool = helper.make_node("MaxPool", ["x"], ["y", "places"], kernel_shape=[2, 2])
    model = model_of(pool, shape=(1, 1, 4, 4))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, (1, 1, 3, 3)))
    return model


def test_second_outputs(judge):
    assert judge(pooled(), "jetson")["outputs"][0] == "wrong"
    assert judge(pooled(), "cpu") == {}


def test_weights_in_other_files(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(
        model_of(helper.make_node("Mul", ["x", "w"], ["y"]), weights={"w": np.ones((1, 4), np.float32)}),
        path, save_as_external_data=True, location="weights.bin", size_threshold=0,
    )  # fmt: skip

    def outside(file):
        found = check_loading(file, load_target("jetson"))
        return [(each.state, each.found) for each in found.findings if each.subject == "external data"]

    assert outside(path) == [("note", "weights in weights.bin")]
    (tmp_path / "weights.bin").unlink()
    assert outside(path) == [("wrong", "weights in files that are not there: weights.bin")]
    model = onnx.load(path, load_external_data=False)
    too_long = "w" * 300  # found by mutating files
    model.graph.initializer[0].external_data[0].value = too_long
    path.write_bytes(model.SerializeToString())
    assert outside(path)[0][0] == "wrong"
    for place in ("../weights.bin", "/etc/passwd"):
        model.graph.initializer[0].external_data[0].value = place
        path.write_bytes(model.SerializeToString())
        assert outside(path) == [("wrong", f"weights outside the model's folder: {place}")]


def test_size_against_memory(tmp_path):
    from importlib import resources

    text = (resources.files("lorita_deploy") / "targets" / "jetson-nano.toml").read_text()
    path = write_small_onnx(tmp_path / "model.onnx", opset=13)
    size = path.stat().st_size

    def memory(there):
        own = tmp_path / "own.toml"
        own.write_text(text.replace("memory_bytes = 4_000_000_000", f"memory_bytes = {there}"))
        found = check_loading(path, read_target(own))
        return {each.subject: each.state for each in found.findings}["memory"]

    assert memory(size - 1) == "wrong"
    assert memory(size * 2) == "note"
    assert memory(size * 5) == "ok"


# ---------------------------------------------------------------------------------------------- a real parser


def identity(dtype):
    return model_of(helper.make_node("Identity", ["x"], ["y"]), dtype=dtype, out=dtype)


def foreign():
    model = model_of(helper.make_node("FastGelu", ["x"], ["y"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


REAL = {
    "plain": lambda: model_of(relu()),
    "newest operators": lambda: model_of(helper.make_node("Gelu", ["x"], ["y"]), opset=20, ir=9),
    "unknown operator": lambda: model_of(helper.make_node("Det", ["x"], ["y"]), shape=(2, 2)),
    "foreign operator": foreign,
    "zero points of 0": lambda: quantized(0),
    "zero points of 3": lambda: quantized(3),
    "unsigned, 0": lambda: quantized(0, np.uint8),
    "unsigned, 7": lambda: quantized(7, np.uint8),
    "integer biases": integer_bias,
    "second output": pooled,
    "strings": lambda: identity(TensorProto.STRING),
    "16-bit integers": lambda: identity(TensorProto.INT16),
    "32-bit unsigned": lambda: identity(TensorProto.UINT32),
    "64-bit integers": lambda: identity(TensorProto.INT64),
    "bytes at the ends": lambda: identity(TensorProto.UINT8),
    "bfloat16": lambda: identity(TensorProto.BFLOAT16),
    "double": lambda: identity(TensorProto.DOUBLE),
    "bytes inside": lambda: model_of(
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.UINT8), helper.make_node("Cast", ["a"], ["y"], to=1)
    ),
}


@pytest.mark.parametrize("case", REAL)
def test_a_real_parser_says_the_same(tmp_path, case):
    """The parser of TensorRT for RTX, the one that installs here, against the answer for the newest TensorRT."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path = tmp_path / "model.onnx"
    path.write_bytes(REAL[case]().SerializeToString())
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parsed = trt.OnnxParser(network, logger).parse(path.read_bytes())
    assert check_loading(path, load_target("jetson-thor@jp7.2-trt11")).loads == parsed


# ---------------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path):
    path = write_small_onnx(tmp_path / "model.onnx", opset=17)

    def run(*arguments):
        return CliRunner().invoke(cli, ["targets", "check", str(path), *arguments])

    page = run("--target", "jetson")
    assert page.exit_code == 0
    assert "would load on jetson-orin-nano@jp6.2" in page.stdout
    page = run("--target", "jetson-nano")
    assert page.exit_code == 1
    assert "would not load on jetson-nano@jp4.6: opset" in page.stdout
    page = run("--target", "jetson-nano", "--json")
    assert page.exit_code == 1
    assert json.loads(page.stdout)["target"] == "jetson-nano@jp4.6"
    assert not LoadCheck.parse(page.stdout, where="stdout").loads
    shown = CliRunner().invoke(cli, ["inspect", str(path), "--target", "jetson-nano"])
    assert shown.exit_code == 1
    assert "multiply-adds" in shown.stdout
    assert "would not load" in shown.stdout
    assert run("--target", "jetson@jp9").exit_code == 2
    assert run().exit_code == 2
