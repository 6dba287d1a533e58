"""What ``inspect`` reads from an ONNX file: counts that can be checked by hand, and files that are not whole."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_onnx import write_small_onnx

from lorita_deploy.errors import BadArtifact
from lorita_deploy.inspection.onnx_file import look_at_onnx
from lorita_deploy.inspection.onnx_reading import outside_bytes
from lorita_deploy.report import facts, words


def model_of(nodes, weights=(), opset=17, ir=8, shape=(1, 4), out=(1, 4), **more):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **more)


def save(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def weight(name, *shape, dtype=np.float32, value=1):
    return numpy_helper.from_array(np.full(shape, value, dtype), name)


def test_multiply_adds_are_those_worked_out_by_hand(tmp_path):
    found = look_at_onnx(write_small_onnx(tmp_path / "small.onnx", width=16))
    convolutions = 16 * 16 * 16 * (3 * 9) + 16 * 16 * 16 * (16 * 9) + 8 * 8 * 16 * (16 * 9)
    assert found.macs is not None
    assert found.macs - convolutions == 64 * 16 * 48 + 48 * 10, "tokens (64 of 16 -> 48) and head (48 -> 10)"


@pytest.mark.parametrize(
    ("node", "shapes", "shape", "out", "macs"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], group=4), [("w", 4, 1, 3, 3)], (1, 4, 5, 5), (1, 4, 3, 3), 4 * 9 * 9),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), [("w", 4, 2, 2, 2)], (1, 4, 5, 5), (1, 2, 6, 6), 4 * 25 * 2 * 4),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), [("w", 6, 4)], (3, 4), (3, 6), 3 * 4 * 6),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), [("w", 4, 6)], (4, 3), (3, 6), 3 * 4 * 6),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [("w", 4, 6)], ("batch", 7, 4), ("batch", 7, 6), 7 * 4 * 6),
        (helper.make_node("Relu", ["x"], ["y"]), [], (1, 4), (1, 4), 0),
    ],
    ids=["grouped", "transposed", "gemm", "gemm-a", "matmul", "none"],
)
def test_multiply_adds_of_each_kind(tmp_path, node, shapes, shape, out, macs):
    weights = [weight(name, *extents) for name, *extents in shapes]
    found = look_at_onnx(save(model_of([node], weights, shape=shape, out=out), tmp_path / "one.onnx"))
    assert found.macs == macs


@pytest.mark.parametrize(
    "other",
    [
        helper.make_node("Einsum", ["a", "w"], ["y"], equation="ij,jk->ik"),
        helper.make_node("FusedMatMul", ["a", "w"], ["y"], domain="com.microsoft"),
        helper.make_node("Twice", ["a", "w"], ["y"], domain="my.own"),
    ],
    ids=lambda node: node.op_type,
)
def test_multiply_adds_are_unknown_where_others_multiply(tmp_path, other):
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    function = helper.make_function("my.own", "Twice", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    own = [function] if other.op_type == "Twice" else []
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["a"]), other], [weight("w", 4, 4)], functions=own)
    model.opset_import.extend(helper.make_opsetid(name, 1) for name in ("com.microsoft", "my.own"))
    assert look_at_onnx(save(model, tmp_path / "one.onnx")).macs is None


def quantized(zero, dtype=np.int8, scales=1):
    axis = {} if scales == 1 else {"axis": 1}
    scale = weight("scale", *([] if scales == 1 else [scales]), value=0.1)
    point = weight("zero", *([] if scales == 1 else [scales]), dtype=dtype, value=zero)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **axis),
    ]
    return model_of(nodes, [scale, point])


def test_zero_points(tmp_path):
    found = look_at_onnx(save(quantized(0), tmp_path / "q.onnx")).quantization
    assert (found.quantize, found.dequantize, found.per_channel, found.dtypes, found.nonzero) == (1, 1, 0, ("int8",), 0)
    found = look_at_onnx(save(quantized(3, np.uint8, scales=4), tmp_path / "q.onnx")).quantization
    assert (found.per_channel, found.dtypes, found.nonzero) == (2, ("uint8",), 2)
    bare = quantized(0)
    for node in bare.graph.node:
        del node.input[2:]
    found = look_at_onnx(save(bare, tmp_path / "q.onnx")).quantization
    assert (found.dtypes, found.nonzero, found.unknown) == (("none",), 0, 0)


def test_zero_points_in_constant_nodes_count_too(tmp_path):
    model = quantized(5)
    (zero,) = [tensor for tensor in model.graph.initializer if tensor.name == "zero"]
    model.graph.initializer.remove(zero)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["zero"], value=zero))
    assert look_at_onnx(save(model, tmp_path / "q.onnx")).quantization.nonzero == 2


def test_inner_graphs_types_domains_and_external_data(tmp_path):
    def branch(name):
        inner = [helper.make_node("Relu", ["x"], [f"{name}_y"])]
        return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, (1, 4))])

    nodes = [
        helper.make_node("If", ["c"], ["a"], then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("FastGelu", ["b"], ["y"], domain="com.microsoft"),
    ]
    model = model_of(nodes, [weight("c", dtype=np.bool_), weight("w", 4, 4)])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = look_at_onnx(path)
    assert found.operators == {"Relu": 2, "If": 1, "MatMul": 1, "FastGelu": 1}
    assert found.domains == ("com.microsoft",)
    assert found.weights == {"float": 16, "bool": 1}
    assert "weights.bin" in found.external_data
    assert found.external_bytes == 16 * 4 + 1
    assert f"17 numbers, {words.size(path.stat().st_size + 65)}" in str(facts.artifact(found).rows)
    (tmp_path / "weights.bin").unlink()
    assert look_at_onnx(path).params == 17, "what the file itself says can be read without its weights"


@pytest.mark.parametrize(("kind", "size"), [("FLOAT", 20), ("FLOAT16", 10), ("BFLOAT16", 10), ("INT8", 5), ("INT4", 3)])
def test_weights_in_other_files_take_what_their_type_takes(kind, size):
    tensor = TensorProto(name="w", dims=[5], data_type=TensorProto.DataType.Value(kind), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    assert outside_bytes(model_of([helper.make_node("Relu", ["x"], ["y"])], [tensor])) == size


def test_a_shape_beyond_all_bounds_has_a_size(tmp_path):
    tensor = TensorProto(name="w", dims=[2**62] * 20, data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [tensor])
    assert facts.artifact(look_at_onnx(save(model, tmp_path / "damaged.onnx"))).rows


def test_a_model_newer_than_the_installed_onnx_is_read_all_the_same(tmp_path):
    relu = helper.make_node("Relu", ["x"], ["y"])
    for model in (model_of([relu], opset=999), model_of([relu], ir=99)):
        found = look_at_onnx(save(model, tmp_path / "new.onnx"))
        assert "newer than the installed onnx" in found.notes[0]
        assert (found.opset == 999) != (found.ir_version == 99)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x08 half a file",
        b"PK\x03\x04",
        bytes(100),
        model_of([helper.make_node("NoSuch", ["x"], ["y"])]).SerializeToString(),
    ],
    ids=["empty", "text", "zip", "zeros", "no such operator"],
)
def test_what_is_not_whole_is_refused(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BadArtifact, match="not a whole ONNX file") as caught:
        look_at_onnx(path)
    assert str(path) in str(caught.value)


def test_nodes_out_of_order_are_read(tmp_path):
    """As onnxruntime's quantizer leaves them; onnxruntime loads them too."""
    import onnxruntime

    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["a"])]
    path = save(model_of(nodes, [weight("w", 4, 4)]), tmp_path / "unsorted.onnx")
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = look_at_onnx(path)
    assert found.macs == 16
    assert "order of computation" in found.notes[0]


def test_nodes_in_a_circle_are_refused(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    nodes.append(helper.make_node("Identity", ["b"], ["y"]))
    with pytest.raises(BadArtifact, match="sorted"):
        look_at_onnx(save(model_of(nodes), tmp_path / "circle.onnx"))


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """Found by mutating files: protobuf parses it, and ONNX's checker finds nothing wrong with it."""
    content = model_of([helper.make_node("Relu", ["x"], ["y"], name="abcdef")]).SerializeToString()
    path = tmp_path / "bad.onnx"
    path.write_bytes(content.replace(b"abcdef", b"abc\xffef"))
    onnx.checker.check_model(onnx.ModelProto.FromString(path.read_bytes()))
    with pytest.raises(BadArtifact, match="not UTF-8"):
        look_at_onnx(path)


def test_every_cut_is_refused(tmp_path):
    whole = write_small_onnx(tmp_path / "small.onnx", width=2).read_bytes()
    path = tmp_path / "cut.onnx"
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:end])
        with pytest.raises(BadArtifact):
            look_at_onnx(path)


def test_more_than_protobuf_holds_is_not_even_read(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(BadArtifact, match="at most 2 GiB"):
        look_at_onnx(path)
