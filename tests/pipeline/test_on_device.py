"""A build whose times are taken on a device, and the commands that talk to one: through a real sshd on this machine."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from openssh import Sshd

from lorita_deploy.cli import cli
from lorita_deploy.pipeline import build, make_options
from lorita_deploy.records import Host, Plan, PriceTable, Receipt


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


OPTIONS = {"model": "fcn", "target": "raspberry-pi-5", "epochs": 2, "calibration_samples": 128, "max_drop": 2.0}


def fcn(folder, **changes):
    """A build of fcn on digits."""
    return make_options(**{**OPTIONS, "out": str(folder), **changes})


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return tmp_path_factory.mktemp("there")


@pytest.fixture(scope="module")
def built(sshd: Sshd, tmp_path_factory, there):
    """A finished build of fcn on digits, priced and raced on the device. Not to be written to."""
    folder = tmp_path_factory.mktemp("fcn")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sshd.environment.items():
            patch.setenv(name, value)
        return folder, build(fcn(folder, target="cpu", device=sshd.address(there)))


@pytest.fixture
def folder(readme_build, tmp_path):
    """A copy of another build, of this machine."""
    return shutil.copytree(readme_build[0], tmp_path / "build")


@pytest.mark.slow
def test_prices_and_races_are_those_of_the_device(built, there):
    folder, report = built
    prices = PriceTable.load(folder / "prices.json")
    assert prices.provenance == report.provenance == "measured"
    assert isinstance(prices.host, Host)
    assert prices.host == report.receipt.host, "the runner's description of the device"
    assert "torch" not in report.receipt.host.versions
    assert all(series.verified for series in report.receipt.series)
    kept = {path.name for path in (there / "store").iterdir()}
    assert {artifact.sha256 for artifact in report.artifacts} <= kept
    assert not list(there.glob("runs/*")), "nothing of the build's runs stays"


def test_a_bundle_is_run_by_its_own_runner_and_its_receipt_comes_back(client, folder, there):
    bundle = folder / "bundle.tar.gz"
    page = invoke("bench", "--device", client.address(there), bundle)
    assert page.exit_code == 0, page.output
    where, *lines = page.stdout.splitlines()[-3:]
    receipt = Receipt.load(where)
    assert bundle.parent == folder
    assert receipt.run_id != Receipt.load(folder / "receipt.json").run_id
    assert all(series.verified for series in receipt.series)
    assert lines[-1] == f"use on {receipt.host.machine}: {receipt.faster}"
    assert receipt.host.kind == "cpu"
    (run,) = there.glob("runs/*")
    assert [path.name for path in run.iterdir()] == ["work"], "what the runner has built there stays for the next time"
    built = run / "work" / "engines" / "dense-key.engine"
    built.parent.mkdir()
    built.write_bytes(b"built in minutes")
    page = invoke("bench", "--device", client.address(there), "--deadline", "1000", bundle)
    assert page.exit_code == 0, page.output
    assert "within 1000 ms at p99: " in page.stdout
    assert [*there.glob("runs/*")] == [run], "the next time asks something else, of the same bundle"
    assert built.read_bytes() == b"built in minutes"


def test_of_a_build_folder_the_bundle_is_run(client, folder, there):
    """By the runtime of its target, and not by the one that raced it here."""
    page = invoke("bench", "--device", client.address(there), "--deadline", "1000", folder)
    assert page.exit_code == 0, page.output
    (where,) = (line for line in page.stdout.splitlines() if line.endswith("Z.json"))
    assert Path(where).parent == folder
    assert Receipt.load(where).deadline.chosen in {"dense", "compressed"}
    assert [*there.glob("runs/*/work/manifest.json")]


def test_a_tampered_bundle_is_not_sent(client, folder, tmp_path):
    runner = folder / "bundle" / "run.py"
    runner.write_bytes(runner.read_bytes() + b"\n")
    page = invoke("bench", "--device", client.address(tmp_path / "elsewhere"), folder / "bundle")
    assert page.exit_code == 2
    assert "changed: run.py" in page.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_a_board_that_is_not_the_target_is_refused_at_once(client, tmp_path, there):
    page = invoke("plan", "--model", "fcn", "--target", "jetson", "--device", client.address(there), "--out", tmp_path / "out")
    assert page.exit_code == 3, page.output
    assert "this device is not a jetson-orin-nano" in page.stderr
    assert not (tmp_path / "out").exists()


def test_a_board_that_does_not_answer(client, folder, there):
    address = client.address(there).replace(f":{client.port}", ":1")
    for command in (("plan", "--model", "fcn"), ("bench", folder), ("doctor",)):
        page = invoke(*command, "--device", address)
        assert page.exit_code == 5, page.output
        assert "Connection refused" in page.stderr
        assert "\n  do:    " in page.stderr


def test_doctor_looks_at_a_device(client, there):
    page = invoke("doctor", "--device", client.address(there), "--json")
    assert page.exit_code == 0, page.output
    findings = {each["subject"]: each for each in json.loads(page.stdout)["findings"]}
    assert {"python", "numpy", "onnxruntime", "folder", "disk", "memory"} <= findings.keys()
    assert findings["in use"]["found"] == "by nobody"
    assert "cpu" in findings["targets it is"]["found"]
    page = invoke("doctor", "--device", client.address(there), "--target", "jetson")
    assert page.exit_code == 3
    assert "is not jetson-orin-nano" in page.stdout


# ---------------------------------------------------------------------------------------------- receipts carried by hand


def test_a_carried_receipt_is_kept_beside_its_bundle(folder, tmp_path):
    carried = shutil.copy(folder / "receipt.json", tmp_path / "carried.json")
    page = invoke("bench", "--receipt", carried, folder / "bundle.tar.gz")
    assert page.exit_code == 0, page.output
    (kept,) = folder.glob("receipt-*.json")
    assert Receipt.load(kept) == Receipt.load(carried)
    alone = invoke("bench", "--receipt", carried)
    assert alone.exit_code == 0
    assert "use on" in alone.stdout


def test_a_receipt_of_another_model_is_refused(folder, make_receipt, tmp_path):
    page = invoke("bench", folder, "--receipt", make_receipt().save(tmp_path / "other.json"))
    assert page.exit_code == 2, page.output
    assert "of other artifacts: dense, compressed" in page.stderr
    assert not list(folder.glob("receipt-*.json"))


@pytest.mark.slow
def test_a_plan_is_made_again_from_a_receipt(built, tmp_path):
    """Estimated prices for a Raspberry Pi, and a receipt by which the board is slower, and the plan better than thought."""
    folder = shutil.copytree(built[0], tmp_path / "build")
    first = build(fcn(folder))
    assert first.provenance == "estimated"
    board = first.receipt.host.model_copy(update={"machine": "Raspberry Pi 5 Model B", "system": "Linux 6.6 aarch64"})
    series = tuple(each.model_copy(update={"median_ms": 7.0}) for each in first.receipt.series)
    ratio = first.receipt.ratios[0].model_copy(update={"ratio": 0.5, "ci95": (0.4, 0.6)})
    carried = first.receipt.model_copy(update={"host": board, "series": series, "ratios": (ratio,)})
    path = carried.save(tmp_path / "carried.json")
    build(fcn(folder, receipt=str(path)), until="plan")
    prices, plan = PriceTable.load(folder / "prices.json"), Plan.load(folder / "plan.json")
    assert prices.network_us == pytest.approx(7000.0)
    assert plan.dense_us == pytest.approx(7000.0)
    assert prices.provenance == "estimated"
    assert "Raspberry Pi 5 Model B" in prices.method
    assert first.plan.changed()
    if _shape(plan) == _shape(first.plan):
        assert plan.predicted_us == pytest.approx(3500.0, rel=1e-4)
    here = first.receipt.save(tmp_path / "here.json")
    given = [word for key, value in OPTIONS.items() for word in ("--" + key.replace("_", "-"), value)]
    page = invoke("plan", *given, "--out", folder, "--receipt", here)
    assert page.exit_code == 3, page.output
    assert "another machine than a raspberry-pi-5" in page.stderr


def _shape(plan):
    return {(each.layer, each.rank) for each in plan.changed()}
