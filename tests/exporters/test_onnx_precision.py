"""fp16 and int8 in the graph: typed as asked, zero points that parsers take, fp32 where the data or the accuracy ask for it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from lorita_deploy.errors import BadData, BadTarget
from lorita_deploy.inspection.loading import check_loading
from lorita_deploy.ports import ExportJob, find_exporter
from lorita_deploy.targets import load_target

EXPORTER = find_exporter("onnx")


def network(scale: float = 1.0) -> nn.Module:
    """Two convolutions, a residual sum, a linear head; ``scale`` blows up what passes between the first two layers."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 5)
            with torch.no_grad():
                self.first.weight.mul_(scale), self.first.bias.mul_(scale)
                self.second.weight.div_(scale)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.first(x))
            return self.head((torch.relu(self.second(y)) + y / scale).mean((2, 3)))

    return Net().eval()


def images(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def export(folder, precision, net=None, **changes):
    job = {
        "folder": folder,
        "filename": f"{precision}.onnx",
        "role": "dense",
        "network": net or network(),
        "examples": (images(1),),
        "opset": 17,
        "ir_version": 8,
        "precision": precision,
        "calibration": [(images(),)],
    }
    return EXPORTER.export(ExportJob(**{**job, **changes}))


def compare(folder, artifact, net=None):
    """Largest difference between the artifact and torch, over the largest output, on images that were not calibrated on."""
    fresh = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    session = EXPORTER.open(folder / artifact.path)
    found = np.concatenate([session({"input": fresh[place : place + 1].numpy()})[0] for place in range(16)])
    expected = (net or network())(fresh).detach().numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_fp16_is_typed_and_its_ends_are_fp32(tmp_path):
    artifact = export(tmp_path, "fp16")
    model = onnx.load(tmp_path / artifact.path)
    weights = {each.name: each.data_type for each in model.graph.initializer if "weight" in each.name}
    assert set(weights.values()) == {TensorProto.FLOAT16}
    ends = {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)}
    assert ends == {TensorProto.FLOAT}
    assert artifact.precision == "fp16"
    assert artifact.kept_fp32 == ()
    assert artifact.size_bytes < 0.7 * export(tmp_path, "fp32").size_bytes
    assert 0 < compare(tmp_path, artifact) < 20 * 2**-11


def test_fp16_keeps_what_overflows_in_fp32(tmp_path):
    net = network(scale=1e6)
    artifact = export(tmp_path, "fp16", net)
    assert {"first", "second"} <= set(artifact.kept_fp32)
    assert "head" not in artifact.kept_fp32
    assert compare(tmp_path, artifact, net) < 20 * 2**-11


def brighter(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if float(x.abs().mean()) > 1e-6:
        return y + x
    return y - x


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("kind", ["celu", "cumsum", "if"])
def test_fp16_leaves_alone_what_has_no_fp16(tmp_path, kind):
    """Operators without it at this opset, and what a subgraph reads by its name."""
    choose = torch.jit.script(brighter)
    inside = {"celu": nn.functional.celu, "cumsum": lambda y: y.cumsum(2), "if": lambda y: choose(y, y * 2)}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            y = inside[kind](y)
            return self.second(y).mean((2, 3))

    net = Net().eval()
    artifact = export(tmp_path, "fp16", net, opset=13)
    weights = {each.data_type for each in onnx.load(tmp_path / artifact.path).graph.initializer if "weight" in each.name}
    assert TensorProto.FLOAT16 in weights
    assert compare(tmp_path, artifact, net) < 20 * 2**-11


def test_int8_for_tensorrt_is_signed_with_zero_points_of_zero_and_scales_per_channel(tmp_path):
    model = onnx.load(tmp_path / export(tmp_path, "int8", runtime="tensorrt").path)
    tensors = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) >= 6
    for node in nodes:
        assert tensors[node.input[2]].dtype == np.int8
        assert not tensors[node.input[2]].any()
    sizes = {tensors[node.input[1]].size for node in nodes}
    assert {1, 16, 5} <= sizes


def test_int8_for_onnxruntime_is_symmetric_and_runs_in_int8_kernels(tmp_path):
    import onnxruntime

    artifact = export(tmp_path, "int8")
    model = onnx.load(tmp_path / artifact.path)
    tensors = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    points = {
        int(point) for node in model.graph.node if node.op_type == "QuantizeLinear" for point in tensors[node.input[2]].flat
    }
    assert points <= {0, 128}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / artifact.path, options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert run.count("QLinearConv") == 2
    assert "Conv" not in run


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_board_would_load_what_is_written_for_it(tmp_path, precision):
    artifact = export(tmp_path, precision, runtime="tensorrt")
    found = check_loading(tmp_path / artifact.path, load_target("jetson-orin-nano"))
    assert found.loads, found.findings


def test_a_board_would_refuse_what_is_written_for_onnxruntime(tmp_path):
    assert not check_loading(tmp_path / export(tmp_path, "int8").path, load_target("jetson-orin-nano")).loads


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_int8_stays_near_the_network(tmp_path, runtime):
    artifact = export(tmp_path, "int8", runtime=runtime)
    assert artifact.kept_fp32 == ()
    assert 1e-4 < compare(tmp_path, artifact) < 0.1


def test_int8_gives_back_the_layers_that_cost_most(tmp_path):
    """A tensor of which one channel is a thousand times the others cannot be quantised as a whole without loss: the layer that
    writes it and the one that reads it stay fp32, the head does not."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 144, 5)).eval()
    with torch.no_grad():
        first.weight[0] *= 1000
        second.weight[:, 0] /= 1000
    expected = net(images()).detach().numpy()

    def near(session):
        found = np.concatenate([session({"input": image[None]})[0] for image in images().numpy()])
        return bool(np.abs(found - expected).max() < 0.05 * np.abs(expected).max())

    whole = export(tmp_path, "int8", net)
    assert not near(EXPORTER.open(tmp_path / whole.path))
    mended = export(tmp_path, "int8", net, accepts=near)
    assert near(EXPORTER.open(tmp_path / mended.path))
    assert mended.precision == "int8"
    assert mended.kept_fp32 == ("0", "2")


def test_nothing_is_accepted_so_the_file_is_fp32_and_says_so(tmp_path):
    artifact = export(tmp_path, "int8", accepts=lambda session: False)
    assert artifact.precision == "fp32"
    assert compare(tmp_path, artifact) < 1e-5


def test_same_job_same_bytes(tmp_path):
    for precision in ("fp16", "int8"):
        assert export(tmp_path, precision).sha256 == export(tmp_path, precision).sha256


@pytest.mark.parametrize("batch", [24, 64])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_calibration_batches_need_not_be_of_the_size_of_the_graphs(tmp_path, precision, batch):
    job = {"batch": batch, "examples": (images(batch),)}
    tame, wild = images(20), images(20)
    wild[-1] *= 8  # what the last batch alone holds must count: int8 has to cover its range
    artifact = export(tmp_path, precision, calibration=[(tame,), (wild,)], **job)
    session = EXPORTER.open(tmp_path / artifact.path)
    fed = wild[-1:].expand(batch, -1, -1, -1).contiguous()
    with torch.inference_mode():
        expected = network()(fed).numpy()
    (found,) = session({"input": fed.numpy()})
    assert np.abs(found - expected).max() / np.abs(expected).max() < 0.05


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nothing_to_calibrate_on_is_refused(tmp_path, precision):
    with pytest.raises(BadData, match=f"nothing to calibrate {precision} on"):
        export(tmp_path, precision, calibration=())


def test_int8_needs_a_recent_opset(tmp_path):
    with pytest.raises(BadTarget, match="opset 13"):
        export(tmp_path, "int8", opset=12, ir_version=7)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_for_timing_the_layers_keep_their_names(tmp_path, precision):
    content = (tmp_path / export(tmp_path, "fp32").path).read_bytes()
    model = onnx.ModelProto.FromString(EXPORTER.for_timing(content, precision, "onnxruntime"))
    assert {"first", "second", "head"} <= {node.name for node in model.graph.node}
    assert len(EXPORTER.for_timing(content, precision, "onnxruntime")) < len(content)
