"""verify, bench and inspect on a real build folder and a real bundle, whole and tampered with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lorita_deploy.bundle.manifest import seal
from lorita_deploy.cli import cli
from lorita_deploy.inspection.files import read_record
from lorita_deploy.records import BuildReport, Receipt


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def folder(readme_build, tmp_path):
    """A copy of a build folder."""
    return Path(shutil.copytree(readme_build[0], tmp_path / "build"))


def test_verify_passes_what_was_built(readme_build):
    for folder in (readme_build[0], readme_build[0] / "bundle"):
        page = invoke("verify", folder, "--json")
        assert page.exit_code == 0, page.output
        checks = json.loads(page.stdout)["checks"]
        assert {check["role"] for check in checks} == {"compressed", "dense"}
        assert all(check["max_rel"] <= check["tolerance"] for check in checks)


@pytest.mark.parametrize("place", ["", "bundle"])
def test_a_changed_artifact_is_named_and_not_run(folder, place):
    artifact = folder / place / "dense.onnx"
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.write_bytes(content)
    for command in ("verify", "bench"):
        page = invoke(command, folder / place)
        assert page.exit_code == 2
        assert "changed" in page.stderr
        assert "dense.onnx" in page.stderr
        assert "nothing was run" in page.stderr


@pytest.mark.parametrize(
    ("command", "said"), [("verify", "and this is a file"), ("bench", "neither a bundle nor a build folder")]
)
def test_what_is_not_there_is_not_called_a_build(tmp_path, command, said):
    page = invoke(command, tmp_path / "none")
    assert page.exit_code == 2
    assert "there is no such file or folder" in page.stderr
    network = tmp_path / "dense.onnx"
    network.write_bytes(b"\x08\x08")
    page = invoke(command, network)
    assert page.exit_code == 2
    assert said in page.stderr


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
def test_limits_that_nothing_could_miss_are_refused(readme_build, number):
    folder = readme_build[0]
    assert invoke("compare", folder, folder, "--tolerance", number).exit_code == 2
    assert invoke("bench", folder / "bundle", "--deadline", number).exit_code == 2


def test_a_receipt_that_was_carried_is_not_judged_by_a_deadline(readme_build):
    page = invoke("bench", readme_build[0], "--receipt", readme_build[0] / "receipt.json", "--deadline", "5")
    assert page.exit_code == 2
    assert "run.py --deadline" in page.stderr


def test_a_missing_artifact_is_named(folder):
    (folder / "bundle" / "compressed.onnx").unlink()
    page = invoke("verify", folder / "bundle")
    assert page.exit_code == 2
    assert "missing: compressed.onnx" in page.stderr


def test_other_outputs_are_code_4(folder):
    golden = folder / "golden" / "outputs-compressed.npz"
    with np.load(golden) as file:
        outputs = {name: file[name] for name in file.files}
    name = next(iter(outputs))
    outputs[name][0, 0] += 0.01 * np.abs(outputs[name]).max()
    np.savez(golden, **outputs)
    page = invoke("verify", folder)
    assert page.exit_code == 4
    assert "FAILED" in page.stdout
    assert "the compressed artifact differs by 0.0" in page.stderr


def test_what_ships_must_be_one_of_the_artifacts(folder):
    shipped = folder / "model.onnx"
    shipped.write_bytes(shipped.read_bytes() + b"x")
    page = invoke("verify", folder)
    assert page.exit_code == 2
    assert "none of the artifacts" in page.stderr


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x04K\x01."])
def test_damaged_golden_data_is_said(folder, content):
    (folder / "golden" / "inputs.npz").write_bytes(content)
    page = invoke("verify", folder)
    assert page.exit_code == 2
    assert "golden data cannot be read" in page.stderr


def test_a_manifest_cannot_lead_out_of_its_folder(folder):
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    manifest["files"][0]["path"] = "../dense.onnx"
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    seal(folder / "bundle")
    for command in ("verify", "bench"):
        page = invoke(command, folder / "bundle")
        assert page.exit_code == 2, page.output
        assert "names impossible files: ../dense.onnx" in page.stderr


def test_bench_adds_a_receipt_and_overwrites_none(folder):
    first = (folder / "receipt.json").read_bytes()
    page = invoke("bench", folder, "--threads", "2", "--json")
    assert page.exit_code == 0, page.output
    (added,) = folder.glob("receipt-*.json")
    receipt = Receipt.load(added)
    assert receipt == Receipt.parse(page.stdout, where="stdout")
    assert receipt.settings.threads == 2
    assert {series.name for series in receipt.series} == {"compressed", "dense"}
    assert all(series.verified for series in receipt.series)
    assert (folder / "receipt.json").read_bytes() == first
    other = receipt.model_copy(update={"host": receipt.host.model_copy(update={"machine": "another board"})})
    there = other.save(folder.parent / "other.json")
    for _ in range(2):  # of another board, in the same second; brought twice, it is kept once
        page = invoke("bench", folder, "--receipt", there)
        assert page.exit_code == 0, page.output
    assert sorted(Receipt.load(path).host.machine for path in folder.glob("receipt-*.json")) == sorted(
        (receipt.host.machine, "another board")
    )
    refused = invoke("compare", folder, added)
    assert refused.exit_code == 3
    assert "threads: 1 -> 2" in refused.stderr


def test_a_bundle_that_was_raced_here_is_still_whole(folder):
    bundle = folder / "bundle"
    for _ in range(2):
        page = invoke("bench", bundle)
        assert page.exit_code == 0, page.output
    assert invoke("verify", bundle).exit_code == 0
    *_, receipt, ratio, faster = page.stdout.splitlines()
    assert receipt.startswith(str(bundle / "receipt-"))
    assert ratio.startswith("compressed: ")
    assert faster.startswith("use on ")
    newest = max(bundle.glob("receipt-*.json"), key=lambda path: path.stat().st_mtime_ns)
    page = invoke("compare", bundle, newest, "--json")  # of a bundle, the last race in it
    assert page.exit_code == 0, page.output
    assert {change["after_ms"] / change["before_ms"] for change in json.loads(page.stdout)["changes"]} == {1.0}


def test_compare_takes_folders_reports_and_receipts(readme_build):
    folder = readme_build[0]
    for other in (folder, folder / "report.json", folder / "receipt.json"):
        page = invoke("compare", folder, other, "--json")
        assert page.exit_code == 0, page.output
        assert {change["verdict"] for change in json.loads(page.stdout)["changes"]} == {"same"}


def test_inspect_shows_every_record_of_a_build(readme_build):
    folder = readme_build[0]
    records = [path for path in folder.rglob("*.json") if not path.name.startswith("job-")]
    assert len(records) >= 20
    for path in records:
        page = invoke("inspect", path)
        assert page.exit_code == 0, f"{path}: {page.output}"
        record = read_record(path)  # what a bundle's runner leaves out has a default
        assert type(record).parse(invoke("inspect", path, "--json").stdout, where=path) == record
    report = BuildReport.load(folder / "report.json")
    shown = invoke("inspect", folder).stdout
    for choice in report.plan.choices:
        assert choice.layer in shown
    plan = invoke("inspect", folder / "plan.json").stdout
    assert "why" in plan
    assert "faster" in plan


def test_a_build_of_another_network_is_not_given_up_unasked(readme_build):
    folder = readme_build[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    page = invoke("train", "-m", "vit", "--epochs", "1", "-o", folder)
    assert page.exit_code == 2
    assert "holds a build of mine, not of vit" in page.stderr
    assert "--fresh" in page.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before
