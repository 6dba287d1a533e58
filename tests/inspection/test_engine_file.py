"""Engines without TensorRT: real ones of TensorRT for RTX where it is installed, and headers as its documentation has them."""

import hashlib
import json
import struct

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from small_onnx import write_small_onnx

from lorita_deploy.cli import cli
from lorita_deploy.errors import BadArtifact
from lorita_deploy.inspection.engine_file import RTX_GPUS, find_plan, look_at_engine
from lorita_deploy.inspection.files import look_at
from lorita_deploy.inspection.loading import check_engine
from lorita_deploy.records import Artifact, EngineRecord
from lorita_deploy.targets import load_target


def plan(version=(10, 3, 0, 30), magic=b"ftrt", form=0, rest=bytes(200)):
    """A plan's header as NVIDIA's sampleEngines.cpp reads it: magic, serialization version, version at bytes 24 to 27."""
    body = magic + struct.pack("<IIIQ", form, 1, 0, 28 + len(rest)) + bytes(version) + rest
    assert len(body) == 28 + len(rest)
    return body


def write(path, content):
    path.write_bytes(content)
    return path


def test_the_version_is_read(tmp_path):
    found = look_at(write(tmp_path / "model.engine", plan()))
    assert (found.runtime, found.version, found.offset_bytes, found.gpus) == ("tensorrt", "10.3.0.30", 0, ())
    assert found.sha256 == hashlib.sha256(plan()).hexdigest()
    assert look_at(write(tmp_path / "model.plan", plan((8, 6, 2, 3)))).version == "8.6.2.3"


def test_json_before_the_plan_is_found_and_said(tmp_path):
    metadata = json.dumps({"description": "detector", "stride": 32, "names": {"0": "person"}}).encode()
    prefixed = struct.pack("<I", len(metadata)) + metadata + plan()
    found = look_at_engine(write(tmp_path / "model.engine", prefixed))
    assert found.version == "10.3.0.30"
    assert found.offset_bytes == 4 + len(metadata)
    assert "JSON (description, stride, names)" in found.prefix
    wrong = [each for each in check_engine(found, load_target("jetson@jp6.2")) if each.state == "wrong"]
    assert [each.subject for each in wrong] == ["prefix"]
    offset = int(wrong[0].fix.split("+")[1].split()[0])
    assert prefixed[offset - 1 :] == plan(), "the fix cuts at the plan's first byte"


@pytest.mark.parametrize("prefix", [b"MYTOOL01" * 5, struct.pack("<I", 6) + b"not js", b"ftr" * 7])
def test_any_other_block_before_the_plan_is_found(tmp_path, prefix):
    found = look_at_engine(write(tmp_path / "model.engine", prefix + plan()))
    assert (found.offset_bytes, found.version) == (len(prefix), "10.3.0.30")
    assert found.prefix


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\x1f\x8b" + bytes(50), "gzip"),
        (b"PK\x03\x04" + bytes(50), "zip"),
        (b"\x08\x08 something", "not those of a plan"),
        (plan()[:20], "cut short"),
        (struct.pack("<I", 2) + b"{}" + plan()[:27], "cut short"),
    ],
)
def test_what_is_no_engine_is_refused(tmp_path, content, said):
    with pytest.raises(BadArtifact, match=said):
        look_at_engine(write(tmp_path / "model.engine", content))


def test_an_engine_called_onnx_and_an_onnx_called_engine(tmp_path):
    with pytest.raises(BadArtifact, match="a TensorRT engine, not ONNX"):
        look_at(write(tmp_path / "model.onnx", plan()))
    with pytest.raises(BadArtifact, match="not a TensorRT engine"):
        look_at(write_small_onnx(tmp_path / "model.engine"))


def test_older_and_newer_headers_name_no_version(tmp_path):
    older = look_at_engine(write(tmp_path / "old.engine", b"ptrt" + bytes(100)))
    newer = look_at_engine(write(tmp_path / "new.engine", plan(form=7)))
    assert older.version is newer.version is None
    assert "older than that" in older.notes[0]
    assert "unknown form" in newer.notes[0]
    for found in (older, newer):
        assert "wrong" in {each.state for each in check_engine(found, load_target("jetson")) if each.subject == "TensorRT"}


@pytest.mark.parametrize(
    ("version", "target", "state", "said"),
    [
        ((10, 3, 0, 30), "jetson@jp6.2", "ok", "10.3.0"),
        ((8, 5, 2, 2), "jetson@jp6.2", "wrong", "that is jetson-orin-nano@jp5.1"),
        ((10, 13, 3, 9), "jetson@jp6.2", "wrong", "loads in the version that built it"),
        ((10, 13, 3, 9), "jetson-thor@jp7.0", "wrong", "that is jetson-thor@jp7.1"),
    ],
)
def test_another_version_is_said_before_loading(tmp_path, version, target, state, said):
    found = look_at_engine(write(tmp_path / "model.engine", plan(version)))
    (finding,) = [each for each in check_engine(found, load_target(target)) if each.subject == "TensorRT"]
    assert finding.state == state
    assert said in finding.found


def test_a_runtime_that_reads_no_engines(tmp_path):
    found = look_at_engine(write(tmp_path / "model.engine", plan()))
    assert [each.state for each in check_engine(found, load_target("cpu")) if each.subject == "runtime"] == ["wrong"]


def test_the_gpu_comes_from_the_record_beside_it(tmp_path):
    path = write(tmp_path / "model.engine", plan())

    def record(sha256):
        artifact = Artifact(
            role="dense", path=path.name, exporter="tensorrt", sha256=sha256, size_bytes=228, opset=17, ir_version=8,
            precision="fp16", batch=1, dynamic_batch=False, rung=0, simplified=False, inputs=(), outputs=(),
        )  # fmt: skip
        EngineRecord(
            artifact=artifact, runtime="tensorrt", version="10.3.0.30", gpus=("SM86",), device=None, cuda=None,
            source_sha256="0" * 64, workspace_bytes=None, timing_cache=None, network_layers=1, layers_file=None,
            parse_seconds=1.0, build_seconds=1.0, messages=(),
        ).save(tmp_path / "model.engine.json")  # fmt: skip

    record("0" * 64)
    assert look_at_engine(path).gpus == (), "a record of another engine says nothing of this one"
    record(hashlib.sha256(plan()).hexdigest())
    found = look_at_engine(path)
    assert (found.gpus, found.gpus_from) == (("SM86",), "record beside it")
    (finding,) = [each for each in check_engine(found, load_target("jetson")) if each.subject == "GPU"]
    assert finding.state == "wrong"
    assert "SM87" in finding.found
    (tmp_path / "model.engine.json").write_text("{")
    assert look_at_engine(path).gpus == ()


def test_a_plan_is_looked_for_where_the_length_says(tmp_path):
    far = struct.pack("<I", 300_000) + b" " * 300_000
    assert find_plan(far + plan()).offset == 300_004
    assert find_plan(struct.pack("<I", 2**32 - 1) + plan()).offset == 4
    assert find_plan(b"ftr") is None


# ---------------------------------------------------------------------------------------------- real engines


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """``real("SM86", ...)``: an engine that TensorRT for RTX built for these GPUs, and its version."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    folder = tmp_path_factory.mktemp("engines")
    small = write_small_onnx(folder / "small.onnx").read_bytes()

    def make(*names, content=small):
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        assert trt.OnnxParser(network, logger).parse(content)
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(names)
        for place, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
        path = folder / f"{'-'.join(names)}.engine"
        path.write_bytes(bytes(builder.build_serialized_network(network, config)))
        return path, trt.__version__

    return make


def half_onnx():
    """A convolution in fp16."""
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float16), "weight")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, *shape])
        for name, *shape in (("x", 3, 8, 8), ("y", 8, 6, 6))
    ]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "weight"], ["y"])], "half", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("names", [("SM86",), ("SM89",), ("SM80", "SM120")], ids="-".join)
def test_a_real_engine(real, names):
    path, version = real(*names)
    found = look_at_engine(path)
    assert (found.runtime, found.version, found.offset_bytes) == ("tensorrt-rtx", version, 0)
    assert (found.gpus, found.gpus_from) == (names, "header")
    assert found.stated_bytes == found.size_bytes
    assert not found.notes


@pytest.mark.slow
@pytest.mark.parametrize("name", RTX_GPUS.values())
def test_every_gpu_has_its_bit(real, name):
    """With a network in fp16: for Turing (SM75) no product of matrices in fp32 is built."""
    assert look_at_engine(real(name, content=half_onnx())[0]).gpus == (name,)
    assert "SM75" in RTX_GPUS.values()


def test_a_real_engine_that_was_cut_or_prefixed(real, tmp_path):
    content = real("SM86")[0].read_bytes()
    cut = look_at_engine(write(tmp_path / "cut.engine", content[:-1000]))
    assert f"{len(content):,} bytes, {len(content) - 1000:,} are there" in cut.notes[0]
    prefixed = look_at_engine(write(tmp_path / "prefixed.engine", struct.pack("<I", 2) + b"{}" + content))
    assert (prefixed.offset_bytes, prefixed.stated_bytes, prefixed.notes) == (6, len(content), ())


def test_the_commands_say_that_a_jetson_does_not_take_it(real):
    path = str(real("SM86")[0])
    for command in (("inspect", path, "--target", "jetson"), ("targets", "check", path, "--target", "jetson")):
        page = CliRunner().invoke(cli, command)
        assert page.exit_code == 1
        assert "would not load on jetson-orin-nano@jp6.2: runtime, GPU" in page.stdout
    page = CliRunner().invoke(cli, ["inspect", path, "--json"])
    assert json.loads(page.stdout)["gpus"] == ["SM86"]
