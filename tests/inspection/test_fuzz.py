"""Mutated artifacts and targets: a reader answers, or says what is wrong; it never crashes and never hangs."""

import copy
import struct
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from mutations import PLACE, clear, edited_lines, edits, line_edits, mutated, positions, tiers, written
from onnx import TensorProto, helper, numpy_helper
from small_onnx import write_small_onnx

from lorita_deploy.errors import BadArtifact, BadTarget, LoritaDeployError
from lorita_deploy.inspection.engine_file import look_at_engine
from lorita_deploy.inspection.files import look_at
from lorita_deploy.inspection.loading import check_loading
from lorita_deploy.records import EngineSummary
from lorita_deploy.report import facts
from lorita_deploy.targets import load_target, read_target, with_profile

TARGETS = Path(str(resources.files("lorita_deploy") / "targets"))
BOARDS = tuple(load_target(name) for name in ("jetson-nano", "jetson@jp6.2", "jetson-thor@jp7.2-trt11", "cpu"))


def answers(path):
    """The whole way of ``inspect FILE --target``: a summary, its table and a verdict, or one clear refusal."""
    try:
        found = look_at(path)
    except LoritaDeployError as error:
        clear(error, path)
        return None
    assert found.to_json()
    assert (facts.engine if isinstance(found, EngineSummary) else facts.artifact)(found).rows
    for target in BOARDS:
        check = check_loading(path, target)
        assert check.findings
        assert all(finding.fix for finding in check.findings if finding.state == "wrong")
        assert facts.loading(check).rows
    return found


# ---------------------------------------------------------------------------------------------- engines


def header(magic, version, size):
    return magic + struct.pack("<IIIQ", 0, 2, 0, size) + bytes(version)


ENGINES = (
    header(b"ftrt", (10, 3, 0, 30), 228) + bytes(200),
    header(b"vtrt", (1, 7, 1, 116), 236) + b"vtrt" + struct.pack("<I", 12) + bytes(200),
    struct.pack("<I", 14) + b'{"stride": 32}' + header(b"ftrt", (8, 6, 2, 3), 228) + bytes(200),
    b"ptrt" + bytes(100),
)


@tiers(st.sampled_from(ENGINES), edits)
def test_engines(content, changes):
    """Mutated plans are read or refused, and what is read is what stands at the stated offset."""
    path = written("model.engine", mutated(content, changes))
    found = answers(path)
    if found is not None and found.version is not None:
        start = found.offset_bytes
        assert ".".join(map(str, path.read_bytes()[start + 24 : start + 28])) == found.version


@tiers(st.binary(max_size=200))
def test_anything_called_an_engine(content):
    """Random bytes are hardly ever a plan."""
    path = written("model.engine", content)
    if not any(magic in content for magic in (b"ftrt", b"vtrt", b"ptrt")):
        with pytest.raises(BadArtifact):
            look_at_engine(path)
    else:
        answers(path)


# ---------------------------------------------------------------------------------------------- ONNX


@cache
def models():
    """A network of many operators, a quantized one, and one with inner graphs."""
    seeds = [write_small_onnx(PLACE[0] / "seed.onnx", width=2).read_bytes()]
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    weights = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
    seeds.append(model([quantize, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])], weights))

    def branch(name):
        inner = [helper.make_node("Relu", ["x"], [f"{name}_y"])]
        return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, (1, 4))])

    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch("then"), else_branch=branch("else"))
    seeds.append(model([choose], [numpy_helper.from_array(np.array(True), "c")]))
    return tuple(seeds)


def model(nodes, weights):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()


single_bytes = st.lists(st.tuples(st.just("overwrite"), positions, st.binary(min_size=1, max_size=1)), min_size=1, max_size=3)


@tiers(st.integers(0, 2), edits | single_bytes)
def test_onnx_bytes(seed, changes):
    """Mutated bytes of ONNX files."""
    answers(written("model.onnx", mutated(models()[seed], changes)))


names = st.sampled_from(["", "x", "y", "input", "z", "no such name", "a\0b", "../../up", "é" * 300])
integers = st.sampled_from([-(2**63), -1, 0, 1, 2, 13, 17, 99, 1000, 2**31, 2**62, 2**63 - 1])
small = st.integers(0, 40)


@st.composite
def surgeries(draw):
    """Edits of the parsed model: every field that the readers look at gets something it should not hold."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(sorted(SURGERIES)),
                small,
                small,
                names,
                integers,
                st.integers(-3, 2**31 - 1) | st.integers(0, 25),
            ),
            min_size=1,
            max_size=5,
        )
    )


def node_of(model, place):
    return model.graph.node[place % len(model.graph.node)]


def change_input(model, a, b, name, number, kind):
    node = node_of(model, a)
    if node.input:
        node.input[b % len(node.input)] = name


def change_attribute(model, a, b, name, number, kind):
    attributes = node_of(model, a).attribute
    if attributes:
        attribute = attributes[b % len(attributes)]
        attribute.i = number
        attribute.type = abs(kind) % 15
        attribute.ints[:] = [number] * (b % 4)


def change_weight(model, a, b, name, number, kind):
    if model.graph.initializer:
        tensor = model.graph.initializer[a % len(model.graph.initializer)]
        if b % 4 == 0:
            tensor.dims[:] = [number] * (b % 9)
        elif b % 4 == 1:
            tensor.data_type = max(-(2**31), min(kind, 2**31 - 1))
        elif b % 4 == 2:
            tensor.ClearField("raw_data")
            tensor.float_data.append(1.0)
        else:
            tensor.external_data.add(key="location", value=name)
            tensor.data_location = TensorProto.EXTERNAL


def change_shape(model, a, b, name, number, kind):
    values = [*model.graph.input, *model.graph.output]
    if not values:
        return
    value = values[a % len(values)]
    if b % 4 == 0:
        value.ClearField("type")
    elif b % 4 == 1:
        value.type.tensor_type.elem_type = kind
    elif b % 4 == 2:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        value.type.tensor_type.shape.dim.add(dim_value=number)


SURGERIES = {
    "operator": lambda m, a, b, name, number, kind: setattr(
        node_of(m, a), "op_type", ("Conv", "Gemm", "MatMul", "If", name)[b % 5]
    ),
    "domain": lambda m, a, b, name, number, kind: setattr(node_of(m, a), "domain", name),
    "inputs": lambda m, a, b, name, number, kind: node_of(m, a).ClearField("input"),
    "outputs": lambda m, a, b, name, number, kind: node_of(m, a).ClearField("output"),
    "input": change_input,
    "attribute": change_attribute,
    "weight": change_weight,
    "shape": change_shape,
    "opset": lambda m, a, b, name, number, kind: setattr(m.opset_import[0], "version", number),
    "no opset": lambda m, a, b, name, number, kind: m.opset_import.add(domain=name, version=number),
    "ir": lambda m, a, b, name, number, kind: setattr(m, "ir_version", number),
    "twice": lambda m, a, b, name, number, kind: m.graph.node.append(copy.deepcopy(node_of(m, a))),
    "zero point": lambda m, a, b, name, number, kind: node_of(m, a).input.append(name),
    "function": lambda m, a, b, name, number, kind: m.functions.add(name=name, domain=name),
    "metadata": lambda m, a, b, name, number, kind: m.metadata_props.add(key=name, value=name),
    "inner graph": lambda m, a, b, name, number, kind: (
        node_of(m, a).attribute.add(name="g", type=5).g.CopyFrom(copy.deepcopy(m.graph))
    ),
}


@tiers(st.integers(0, 2), surgeries())
def test_onnx_models(seed, changes):
    """Models that protobuf reads, with wrong numbers, names, types and shapes in them."""
    found = onnx.ModelProto.FromString(models()[seed])
    for kind, *values in changes:
        SURGERIES[kind](found, *values)
    answers(written("model.onnx", found.SerializeToString()))


# ---------------------------------------------------------------------------------------------- targets

values = st.sampled_from(
    [
        "-1",
        "0",
        "1e400",
        "nan",
        '"text"',
        "[]",
        "{}",
        "true",
        "1979-05-27",
        "9" * 400,
        '["jp6.2", 3]',
        '"jp6.2"',
        "[[[[]]]]",
        "{ fp32 = 0 }",
    ]
)


@tiers(
    st.sampled_from(sorted(path.name for path in TARGETS.glob("*.toml"))),
    line_edits(values, word=30),
    edits.map(lambda each: each[:1]),
)
def test_target_files(name, changes, byte_changes):
    """Mutated target files are read whole, or refused with the file named."""
    content = edited_lines((TARGETS / name).read_text(), changes)
    path = written("mine.toml", mutated(content, byte_changes) if len(changes) % 2 else content)
    try:
        found = read_target(path)
    except BadTarget as error:
        clear(error, path)
        return
    assert found.limits.opset <= found.limits.opset_max
    assert facts.target(found).rows
    assert found.spelled
    assert [with_profile(found, name).profile.name for name in found.profiles] == list(found.profiles)
