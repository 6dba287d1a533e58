"""The ONNX exporter on real networks: same outputs as torch, layer names kept, versions as asked, same bytes every time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from lorita_deploy.errors import BadArtifact, BadData, BadNetwork, BadTarget
from lorita_deploy.inspection.onnx_file import look_at_onnx
from lorita_deploy.ports import ExportJob, find_exporter

EXPORTER = find_exporter("onnx")
IR = {13: 7, 17: 8, 18: 8, 20: 9}


class Attention(nn.Module):
    """One head over a sequence, with the norm before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.o(functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))


class Everything(nn.Module):
    """Convolution and BN, a residual, pairs of both kinds, linear layers on sequences and on vectors, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pair = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.Conv2d(4, 8, 1))
        self.pair_bn = nn.BatchNorm2d(8)
        self.before = nn.BatchNorm2d(8)  # in front of a layer: cannot be folded backwards across the residual
        self.grouped, self.grouped_bn = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
        self.attention = Attention(8)
        self.mixer = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 8))
        self.drop = nn.Dropout()
        self.vector, self.vector_bn = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
        self.biased, self.biased_bn = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.conv(x)))
        x = x + self.pair_bn(self.pair(x))
        x = x + self.grouped_bn(self.grouped(functional.relu(self.before(x))))
        tokens = self.mixer(self.attention(x.flatten(2).transpose(1, 2)))
        y = functional.gelu(self.vector_bn(self.vector(self.drop(tokens.mean(1)))))
        y = functional.relu(self.biased_bn(self.biased(y)))
        return self.head(y.view(y.size(0), -1))


def vgg_like() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 8)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 4 * 4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))


def fcn_like() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and scales that matter (fresh ones are nearly the identity), and no head of zeros."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            layer.weight.data.normal_(0, 0.05, generator=generator)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.5, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def make(build: object = Everything) -> nn.Module:
    torch.manual_seed(0)
    return lively(build())


def job(folder: Path, network: nn.Module, size: int = 16, **changes: object) -> ExportJob:
    options: dict = {"opset": 17, "ir_version": 8, **changes}
    return ExportJob(
        folder=folder,
        filename="model.onnx",
        role="dense",
        network=network,
        examples=options.pop("examples", (torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)),)),
        **options,
    )


def agreement(network: nn.Module, path: Path, *inputs: torch.Tensor, names: tuple[str, ...] = ("input",)) -> float:
    """Largest difference over the largest output."""
    with torch.inference_mode():
        expected = network(*inputs).numpy()
    (got,) = EXPORTER.open(path)({name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def assert_names_kept(network: nn.Module, path: Path) -> None:
    """The promise: every layer's weight under its own name, read by a node of the layer's name, with the bias beside it."""
    model = onnx.load(path)
    initializers = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node), "node names are unique"
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert layers
    for name, layer in layers:
        shape = tuple(layer.weight.shape)
        if f"{name}.weight" in initializers:
            assert initializers[f"{name}.weight"] == shape
            assert nodes[name].input[1] == f"{name}.weight"
        else:
            assert initializers[f"{name}.weight.T"] == shape[::-1]
            assert nodes[name].input[1] == f"{name}.weight.T"
        if layer.bias is not None:
            assert initializers[f"{name}.bias"] == (shape[0],)


@pytest.mark.parametrize(("opset", "dynamic"), [(13, False), (17, False), (17, True), (18, True), (20, False)])
def test_same_function_at_every_opset(tmp_path: Path, opset: int, dynamic: bool) -> None:
    network = make()
    artifact = EXPORTER.export(job(tmp_path, network, opset=opset, ir_version=IR[opset], dynamic_batch=dynamic))
    path = tmp_path / artifact.path
    for batch in (1, 5) if dynamic else (1,):
        assert agreement(network, path, torch.randn(batch, 3, 16, 16)) < 1e-4
    assert_names_kept(network, path)
    model = onnx.load(path)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    assert model.ir_version == IR[opset]
    assert (artifact.opset, artifact.ir_version, artifact.size_bytes) == (opset, IR[opset], path.stat().st_size)
    assert artifact.inputs[0].shape == ("batch" if dynamic else 1, 3, 16, 16)
    assert artifact.outputs[0].shape == ("batch" if dynamic else 1, 5)
    assert artifact.simplified, artifact.notes


@pytest.mark.parametrize("build", [vgg_like, fcn_like])
def test_batch_norms_are_folded(tmp_path: Path, build: object) -> None:
    network = make(build)
    artifact = EXPORTER.export(job(tmp_path, network, batch=4))
    assert agreement(network, tmp_path / artifact.path, torch.randn(4, 3, 16, 16)) < 1e-5
    assert "BatchNormalization" not in look_at_onnx(tmp_path / artifact.path).operators
    assert_names_kept(network, tmp_path / artifact.path)
    assert artifact.inputs[0].shape == (4, 3, 16, 16)


def test_only_the_batch_norm_that_cannot_be_folded_stays(tmp_path: Path) -> None:
    EXPORTER.export(job(tmp_path, make()))
    norms = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "BatchNormalization"]
    assert [node.input[1] for node in norms] == ["before.weight"]


def test_equal_biases_keep_their_own_names(tmp_path: Path) -> None:
    """The tracer and onnxsim both like to store equal tensors once; a quantiser then finds a layer without its bias."""
    network = make(lambda: nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))))
    for block in network:
        nn.init.zeros_(block[0].bias)
    EXPORTER.export(job(tmp_path, network, examples=(torch.randn(1, 6),)))
    assert_names_kept(network, tmp_path / "model.onnx")


def test_a_layer_called_twice_is_named_twice(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(functional.relu(self.bn(self.layer(x))))

    network = make(Twice)
    EXPORTER.export(job(tmp_path, network))
    assert agreement(network, tmp_path / "model.onnx", torch.randn(1, 3, 16, 16)) < 1e-5
    nodes = {node.name: list(node.input)[1:2] for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert nodes["layer"] == nodes["layer#2"] == ["layer.weight"]  # the batch norm cannot go into a weight used elsewhere
    assert "BatchNormalization" in look_at_onnx(tmp_path / "model.onnx").operators


def test_several_inputs_one_of_them_integers(tmp_path: Path) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(10, 4), nn.Linear(7, 2)

        def forward(self, words: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.cat([self.table(words).mean(1), numbers], 1))

    network = make(Joined)
    names = ("words", "numbers")
    examples = (torch.tensor([[1, 5, 9]]), torch.randn(1, 3))
    artifact = EXPORTER.export(job(tmp_path, network, examples=examples, input_names=names, dynamic_batch=True))
    inputs = (torch.randint(0, 10, (5, 3)), torch.randn(5, 3))
    assert agreement(network, tmp_path / "model.onnx", *inputs, names=names) < 1e-5
    assert [spec.dtype for spec in artifact.inputs] == ["int64", "float32"]


def test_simplifying_can_be_left_out(tmp_path: Path) -> None:
    network = make()
    artifact = EXPORTER.export(job(tmp_path, network, simplify=False))
    assert not artifact.simplified
    assert agreement(network, tmp_path / "model.onnx", torch.randn(1, 3, 16, 16)) < 1e-5
    assert_names_kept(network, tmp_path / "model.onnx")


def test_training_mode_is_left_as_it_was(tmp_path: Path) -> None:
    network = make(vgg_like).train()
    network[1].eval()
    before = [layer.training for layer in network.modules()]
    EXPORTER.export(job(tmp_path, network))
    assert [layer.training for layer in network.modules()] == before


def test_metadata_is_written_and_nothing_of_the_machine(tmp_path: Path) -> None:
    metadata = {"classes": '["zero", "one"]', "ranks": '{"pair": 4}', "mean": "[0.5]"}
    EXPORTER.export(job(tmp_path, make(), metadata=metadata))
    found = look_at_onnx(tmp_path / "model.onnx")
    assert metadata.items() <= found.metadata.items()
    assert found.producer.startswith("lorita-deploy ")
    content = (tmp_path / "model.onnx").read_bytes()
    here = [str(tmp_path), str(Path(__file__).parent), sys.prefix, str(Path(torch.__file__).parent), "site-packages", ".py"]
    assert not [place for place in here if place.encode() in content]


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_onnx import EXPORTER, job, make
print(EXPORTER.export(job(Path(sys.argv[2]), make(), metadata=dict(b="2", a="1"))).sha256)
"""


def test_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    here = EXPORTER.export(job(tmp_path / "here", make(), metadata={"a": "1", "b": "2"}))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path / "there")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert done.stdout.split()[-1] == here.sha256
    assert (tmp_path / "here/model.onnx").read_bytes() == (tmp_path / "there/model.onnx").read_bytes()


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"precision": "fp16"}, BadData, "nothing to calibrate fp16 on"),
        ({"ir_version": 7}, BadTarget, "needs IR version 8"),
        ({"opset": 999}, BadTarget, "newer than the installed onnx"),
        ({"output_names": ("a", "b")}, BadNetwork, "gives 1 outputs, 2 are named"),
        ({"examples": (torch.randn(1, 4, 16, 16),)}, BadNetwork, "forward pass fails"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        EXPORTER.export(job(tmp_path, make(vgg_like), **changes))
    assert not list(tmp_path.iterdir())


class Untraceable(nn.Module):
    """Neither way of tracing has a rule for the eigenvalues of a matrix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(-1, -2))


@pytest.mark.parametrize("opset", [17, pytest.param(18, marks=pytest.mark.slow)])
def test_an_operation_that_onnx_lacks(tmp_path: Path, opset: int) -> None:
    with pytest.raises(BadNetwork, match=f"cannot be written as ONNX opset {opset}") as caught:
        EXPORTER.export(job(tmp_path, Untraceable(), opset=opset))
    assert "torch.jit.trace" in str(caught.value)


def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = nn.Linear(30000, 20000)
    with pytest.raises(BadNetwork, match=r"2\.4 GB"):
        EXPORTER.export(job(tmp_path, network))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    EXPORTER.export(job(tmp_path, make(fcn_like)))
    content = (tmp_path / "model.onnx").read_bytes()
    wrong = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "text": b"hello, world\n" * 20,
        "json": b'{"schema": "lorita-deploy/plan/1"}',
    }
    for name, damaged in wrong.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(damaged)
        with pytest.raises(BadArtifact, match=name):
            EXPORTER.open(path)
    with pytest.raises(BadArtifact, match="cannot read"):
        EXPORTER.open(tmp_path / "absent.onnx")


def test_weights_in_other_files_are_not_followed(tmp_path: Path) -> None:
    EXPORTER.export(job(tmp_path, make(fcn_like)))
    model = onnx.load(tmp_path / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    (tmp_path / "external.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadArtifact, match="other files"):
        EXPORTER.open(tmp_path / "external.onnx")


def test_inputs_that_do_not_fit_say_what_is_wanted(tmp_path: Path) -> None:
    EXPORTER.export(job(tmp_path, make(fcn_like)))
    session = EXPORTER.open(tmp_path / "model.onnx")
    with pytest.raises(BadArtifact, match=r"input tensor\(float\) \[1, 3, 16, 16\]"):
        session({"input": np.zeros((2, 3, 16, 16), np.float32)})


# ---------------------------------------------------------------------------------------------- slow: bigger networks


@pytest.mark.slow
@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("mobilenet_v2", 64), ("densenet121", 64), ("vit_b_16", 224), ("efficientnet_b0", 64)]
)
def test_torchvision(tmp_path: Path, name: str, size: int, opset: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = make(lambda: getattr(torchvision.models, name)(weights=None))
    dynamic = opset != 17
    artifact = EXPORTER.export(job(tmp_path, network, size, opset=opset, ir_version=IR[opset], dynamic_batch=dynamic))
    for batch in (1, 5) if dynamic else (1,):
        assert agreement(network, tmp_path / artifact.path, torch.randn(batch, 3, size, size)) < 1e-4
    if name != "vit_b_16":  # its attention projects with weights that are no layer's own
        assert_names_kept(network, tmp_path / artifact.path)
    print(name, opset, artifact.simplified, artifact.notes, look_at_onnx(tmp_path / artifact.path).operators)


@pytest.mark.slow
def test_through_torch_export_where_tracing_has_no_rule(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network = make(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.RMSNorm(784), nn.Linear(784, 5))
    )
    EXPORTER.export(job(tmp_path, network, opset=18, dynamic_batch=True))
    for batch in (1, 5):
        assert agreement(network, tmp_path / "model.onnx", torch.randn(batch, 3, 16, 16)) < 1e-4
    assert_names_kept(network, tmp_path / "model.onnx")
