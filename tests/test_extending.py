"""docs/extending.md: its packages, written exactly as they are printed, are found by name and do their work."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import torch
from click.testing import CliRunner
from pages import PAGES, ROOT, blocks, commands, section
from torch import nn

import lorita_deploy as ld
from lorita_deploy.bundle.manifest import check_bundle
from lorita_deploy.cli import cli
from lorita_deploy.errors import BadArtifact, VerificationFailed
from lorita_deploy.measure.accuracy import agreement, predictions
from lorita_deploy.ports import EXPORTERS, MODELS, ExportJob, find_exporter, find_model, names
from lorita_deploy.records import ArtifactList, FidelityReport, Receipt, Verification

PAGE = PAGES["docs/extending.md"]
FILES = dict(re.findall(r"^`([\w./-]+)`\n\n```\w+\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
PACKAGES = ("yournets", "yourort")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, and what pip would put beside them: the packages' metadata."""
    root = tmp_path_factory.mktemp("outside")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for name in PACKAGES:
        project = tomllib.loads(FILES[f"{name}/pyproject.toml"])["project"]
        points = "".join(
            f"[{group}]\n" + "".join(f"{point} = {place}\n" for point, place in each.items())
            for group, each in project["entry-points"].items()
        )
        about = root / name / f"{project['name']}-{project['version']}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
        (about / "entry_points.txt").write_text(points)
    return root


@pytest.fixture
def installed(folder, monkeypatch):
    """Both packages can be imported, and their entry points are seen."""
    for name in PACKAGES:
        monkeypatch.syspath_prepend(folder / name)
    importlib.invalidate_caches()
    monkeypatch.chdir(folder)
    yield folder
    for name in PACKAGES:
        sys.modules.pop(name, None)


def test_the_page_holds_two_packages_and_a_target():
    assert FILES.keys() == {
        *(f"{name}/{file}" for name in PACKAGES for file in ("pyproject.toml", f"{name}.py")),
        "yourort/yourort_runner.py",
        "my-board.toml",
    }


def test_without_them_there_is_no_such_name():
    assert "tiny" not in names(MODELS)
    assert "ort" not in names(EXPORTERS)


def test_the_model_is_one(installed):
    torch.manual_seed(0)
    for name, width in (("tiny", 32), ("tiny-wide:48", 48), ("yournets:TINY", 32)):
        spec = find_model(name)
        network = spec.build(7, 32).eval()
        assert network[0].out_channels == width
        assert network(torch.zeros(2, *spec.input_shape())).shape == (2, 7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("models show tiny", "one residual block"),
        ("models list", "tiny-wide:NAME"),
        ("exporters show ort", "optimised ahead of time"),
        ("targets show my-board.toml", "vendor data sheet, page 3"),
    ],
)
def test_the_command_line_knows_them(installed, words, said):
    found = CliRunner().invoke(cli, words.split(), env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    assert said in found.output


def test_the_exporter_writes_what_computes_the_same(installed, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    inputs = (torch.randn(1, 3, 8, 8),)
    job = ExportJob(tmp_path, "dense.onnx", "dense", network, inputs, opset=17, ir_version=8)
    source = find_exporter("onnx").export(job)
    exporter = find_exporter("ort")
    assert exporter.check() == []
    artifact = exporter.export(ExportJob(tmp_path, "dense.ort", "dense", None, (), opset=17, ir_version=8, source=source))
    assert (artifact.path, artifact.exporter) == ("dense.ort", "ort")
    assert artifact.size_bytes == (tmp_path / "dense.ort").stat().st_size
    given = {}
    exec(blocks(section(PAGE, "An exporter"), "python")[-1], given)
    assert given["differs"](network, tmp_path / "dense.ort", inputs) < 1e-5
    (tmp_path / "broken.ort").write_bytes(b"nonsense")
    with pytest.raises(BadArtifact, match="does not load it"):
        exporter.open(tmp_path / "broken.ort")


@pytest.fixture
def my_cpu(installed, tmp_path):
    """A target that is this machine, with the exporter of the page."""
    text = FILES["my-board.toml"].replace("my-board", "my-cpu").replace('device_tree_model = "My Board"', "local = true")
    path = tmp_path / "my-cpu.toml"
    path.write_text(text.replace("a board of mine", "this machine"))
    return path


def small_build(target, out, **more):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    batches = [(torch.randn(16, 1, 8, 8),) for _ in range(4)]
    answers = predictions(network, batches)
    task = ld.Task(
        examples=(batches[0][0][:1],),
        calibration=batches,
        evaluate=lambda each: agreement(each, answers, batches, "validation"),
    )
    asked = {"model": "mine", "target": str(target), "out": str(out), "max_drop": 30.0, "narrow": False, **more}
    return ld.build(ld.make_options(**asked), model=network, task=task)


def test_a_build_verifies_races_and_ships_what_the_exporter_made(my_cpu, tmp_path):
    out = tmp_path / "build"
    small_build(my_cpu, out)
    checked = FidelityReport.load(out / "fidelity.json").further
    assert checked.keys() == {"compressed.ort", "dense.ort"}
    assert all(check.passed for checks in checked.values() for check in checks)
    raced = Receipt.load(out / "receipt-ort.json")
    assert raced.settings.runtime == "ort"
    files = {each.role: each for each in ArtifactList.load(out / "artifacts.json").engines}
    assert {each.name: each.sha256 for each in raced.series} == {role: each.sha256 for role, each in files.items()}
    assert all(each.verified for each in raced.series)
    manifest = check_bundle(out / "bundle")
    assert [each.path for each in manifest.further["ort"]] == ["compressed.ort", "dense.ort"]
    assert (out / "bundle" / "runtime_ort.py").read_text() == FILES["yourort/yourort_runner.py"]
    command = [sys.executable, "-B", "run.py", "--runtime", "ort", "--verify-only"]
    done = subprocess.run(command, cwd=out / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Verification.load(out / "bundle" / "verification.json")
    assert {each.name: each.sha256 for each in found.artifacts} == {role: each.sha256 for role, each in files.items()}
    assert found.settings.runtime == "ort"
    (out / "bundle" / "runtime_ort.py").write_text("import nothing_that_there_is\n")
    done = subprocess.run(command, cwd=out / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "runtime_ort.py" in done.stderr
    assert "nothing was run" in done.stderr


@pytest.mark.slow
def test_what_computes_something_else_does_not_pass(my_cpu, tmp_path, monkeypatch):
    exporter = find_exporter("ort")
    whole = type(exporter).open
    monkeypatch.setattr(
        type(exporter), "open", lambda self, path: lambda inputs: [2 * each for each in whole(self, path)(inputs)]
    )
    with pytest.raises(VerificationFailed) as caught:
        small_build(my_cpu, tmp_path / "build")
    assert caught.value.where.endswith("compressed.ort")


def test_a_runtime_that_cannot_be_used_is_said_so(tmp_path):
    from lorita_deploy.bundle import runtimes

    assert runtimes.find("onnxruntime", str(tmp_path)) is runtimes.OnnxRuntime
    assert runtimes.find("ort", str(tmp_path)) is None
    (tmp_path / "runtime_ort.py").write_text("import nothing_that_there_is\n")
    (tmp_path.parent / "runtime_x.py").write_text("Runtime = object\n")
    assert runtimes.find(f"../{tmp_path.parent.name}/x", str(tmp_path)) is None
    with pytest.raises(runtimes.CannotRunError, match="nothing_that_there_is"):
        runtimes.find("ort", str(tmp_path))


def test_a_form_is_where_the_page_says():
    rows = re.findall(r"^\| `(lorita_deploy/[\w/]+\.py)` \| (.*) \|$", section(PAGE, "A form"), flags=re.MULTILINE)
    assert len(rows) == 9
    for path, told in rows:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        assert set(re.findall(r"`(\w+)`", told)) <= defined, path


@pytest.mark.slow
def test_every_command_of_the_page_runs(folder):
    """All but pip's, in order, as they are printed; the builds with a training of two epochs, to be done in minutes."""
    path = os.pathsep.join([*(str(folder / name) for name in PACKAGES), os.environ.get("PYTHONPATH", "")])
    ran = 0
    for words in commands(PAGE):
        if words[0] != "lorita-deploy":
            assert words[:3] == ["pip", "install", "-e"]
            continue
        more = ["--epochs", "2"] if words[1] in ("build", "export") else []
        command = [sys.executable, "-m", "lorita_deploy", *words[1:], *more]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
        ran += 1
    assert ran == 6
    made = folder / "build" / "tiny-my-board"
    engines = ArtifactList.load(made / "artifacts.json").engines
    assert [each.path for each in engines] == ["compressed.ort", "dense.ort"]
    assert all((made / each.path).stat().st_size == each.size_bytes for each in engines)
