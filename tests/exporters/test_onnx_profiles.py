"""From a profile to a file: what the target says is what the exporter writes, records and leaves loadable there."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from lorita_deploy.errors import BadNetwork, BadTarget
from lorita_deploy.inspection.loading import check_loading
from lorita_deploy.ports import MODELS, ExportJob, find_exporter, find_model, names
from lorita_deploy.targets import all_targets, load_target

SPELLED = [f"{target.name}@{name}" for target in all_targets() for name in target.profiles]
PLAIN = [target.name for target in all_targets() if not target.profiles]
OLDEST, NEWEST = "jetson-nano@jp4.6", "jetson-thor@jp7.2-trt11"


class Small(nn.Module):
    """Convolution, batch and layer norm, attention, GELU: what opsets write differently, and TensorRTs import since when."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8)
        self.norm, self.mix, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = functional.relu(self.bn(self.conv(x))).flatten(2).transpose(1, 2)
        tokens = functional.scaled_dot_product_attention(tokens, self.norm(tokens), tokens)
        return self.head(functional.gelu(self.mix(tokens)).mean(1))


def export(folder, target, opset=None, ir=None, network=None):
    torch.manual_seed(0)
    job = ExportJob(
        folder=folder, filename="model.onnx", role="dense", network=(network or Small()).eval(),
        examples=(torch.rand(1, 3, 16, 16),), opset=opset or target.limits.opset, ir_version=ir or target.limits.ir_version,
    )  # fmt: skip
    return find_exporter("onnx").export(job)


@pytest.mark.parametrize("name", [OLDEST, "jetson-xavier-nx@jp5.1", "jetson-orin-nano@jp6.0", NEWEST, "cpu"])
def test_what_the_profile_says_is_written_recorded_and_loads(tmp_path, name):
    target = load_target(name)
    artifact = export(tmp_path, target)
    model = onnx.load(tmp_path / artifact.path)
    written = {entry.domain: entry.version for entry in model.opset_import}
    assert written == {"": target.limits.opset} == {"": artifact.opset}
    assert model.ir_version == target.limits.ir_version == artifact.ir_version
    found = check_loading(tmp_path / artifact.path, target)
    assert found.loads, [finding for finding in found.findings if finding.state == "wrong"]
    assert found.sha256 == artifact.sha256


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SPELLED, *PLAIN])
def test_every_profile(tmp_path, name):
    test_what_the_profile_says_is_written_recorded_and_loads(tmp_path, name)


def test_the_file_for_the_oldest_profile_loads_on_every_board(tmp_path):
    export(tmp_path, load_target(OLDEST))
    refused = {name for name in (*SPELLED, *PLAIN) if not check_loading(tmp_path / "model.onnx", load_target(name)).loads}
    assert not refused


def test_the_newest_profile_s_largest_opset_does_not_load_on_the_oldest(tmp_path):
    export(tmp_path, load_target("jetson@jp6.2"), opset=20, ir=9)
    model = tmp_path / "model.onnx"
    wrong = {each.subject for each in check_loading(model, load_target(OLDEST)).findings if each.state == "wrong"}
    assert {"opset", "operators"} <= wrong
    assert check_loading(model, load_target("cpu")).loads


def test_layer_normalization_is_why_old_profiles_get_opset_13(tmp_path):
    export(tmp_path, load_target("cpu"), opset=17, ir=8)
    assert "LayerNormalization" in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    found = check_loading(tmp_path / "model.onnx", load_target("jetson-xavier-nx@jp5.1"))
    (finding,) = [each for each in found.findings if each.state == "wrong"]
    assert "LayerNormalization" in finding.found
    assert "--opset 13" in finding.fix
    assert "TensorRT 8.6" in finding.fix
    assert check_loading(tmp_path / "model.onnx", load_target("jetson-orin-nano@jp6.0")).loads


def test_an_ir_version_that_does_not_go_with_the_opset_is_refused(tmp_path):
    with pytest.raises((BadTarget, BadNetwork), match="IR"):
        export(tmp_path, load_target("cpu"), opset=17, ir=7)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", names(MODELS))
@pytest.mark.parametrize("name", [OLDEST, "jetson"])
def test_every_sample_model_loads_where_it_is_exported_for(tmp_path, model, name):
    spec, target = find_model(model), load_target(name)
    network = spec.build(10, spec.input_size).eval()
    job = ExportJob(
        folder=tmp_path, filename="model.onnx", role="dense", network=network, examples=(torch.rand(1, *spec.input_shape()),),
        opset=target.limits.opset, ir_version=target.limits.ir_version,
    )  # fmt: skip
    find_exporter("onnx").export(job)
    runs = [other for other in SPELLED if load_target(other).limits.opset_max >= target.limits.opset]
    for other in runs if name == OLDEST else [target.spelled]:
        found = check_loading(tmp_path / "model.onnx", load_target(other))
        assert found.loads, [finding for finding in found.findings if finding.state == "wrong"]
