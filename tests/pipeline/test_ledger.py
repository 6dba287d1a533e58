"""The error ledger says what each step did, in the order in which they ran, and which went beyond its budget first."""

import pytest

from lorita_deploy.pipeline.ledger import Account
from lorita_deploy.records import (
    Accuracy,
    Artifact,
    Budget,
    BuildReport,
    Choice,
    CollapsedRecord,
    CompressedRecord,
    Fidelity,
    FidelityReport,
    Plan,
)

TOLERANCE = 1e-3


def right(correct, split="validation"):
    return Accuracy(metric="accuracy", split=split, correct=correct, total=200)


def artifact(role, precision="fp32", simplify_error=None):
    given = {"exporter": "onnx", "size_bytes": 1, "opset": 17, "ir_version": 8, "batch": 1, "dynamic_batch": False, "rung": 0}
    given |= {"inputs": (), "outputs": (), "simplified": simplify_error is not None, "simplify_error": simplify_error}
    return Artifact(role=role, path=f"{role}.onnx", sha256=role[0] * 64, precision=precision, **given)


def check(role, max_rel, inputs="real"):
    found = {"examples": 8, "max_abs": 1.0, "cosine": 1.0, "top1_agreement": 1.0, "tolerance": TOLERANCE}
    return Fidelity(role=role, inputs=inputs, max_rel=max_rel, **found)


@pytest.fixture
def account(make_receipt):
    """``account(truncated=..., rank=..., ...)``: the steps that follow from these records."""

    def make(rank=8, truncated=None, final=196, max_drop=1.0, precision="fp32", simplify_error=None, factored=True, worst=2e-6):
        choice = Choice(
            layer="fc", form="pair" if rank else "dense", k_in=8, k_out=8, rank=rank, predicted_loss=0.1, us=1.0, dense_us=2.0
        )
        plan = Plan(
            model="m",
            network_sha256="0",
            target="cpu",
            precision="fp32",
            budget=Budget(max_drop=max_drop),
            provenance="measured",
            dense_us=2.0,
            predicted_us=1.0,
            predicted_loss=0.1,
            groups=(),
            choices=(choice,),
            solver="",
        )
        collapsed = CollapsedRecord(
            model="m",
            classes=2,
            input_shapes=((8,),),
            layers=(),
            left_alone=(),
            params=9,
            macs=9,
            collapse_error=1e-7,
            accuracy=(right(198),),
            weights_sha256="0",
        )
        compressed = CompressedRecord(
            plan_sha256="0",
            params=5,
            macs=5,
            accuracy=(right(final),),
            weights_sha256="0",
            truncated=None if truncated is None else right(truncated),
        )
        artifacts = (artifact("compressed", precision, simplify_error), artifact("dense", precision))
        checks = (check("compressed", 1e-6), check("compressed", worst, "random"), check("dense", 5e-7))
        test = {"compressed": right(197, "test"), "dense": right(199, "test")}
        return Account(
            factored=factored,
            collapsed=collapsed,
            plan=plan,
            compressed=compressed,
            artifacts=artifacts,
            fidelity=FidelityReport(artifacts=artifacts, checks=checks, accuracy=test),
            receipt=make_receipt(dense=2.0, compressed=1.0),
            tolerance=TOLERANCE,
        ).steps()

    return make


def test_the_steps_of_a_plain_build(account):
    steps = account()
    assert [step.step for step in steps] == ["collapse", "truncation", "export", "engine"]
    collapse, truncation, export, engine = steps
    assert (collapse.error, collapse.budget, collapse.accuracy) == (1e-7, TOLERANCE, right(198))
    assert (truncation.error, truncation.budget, truncation.unit) == (pytest.approx(1.0), 1.0, "points")
    assert (export.error, export.accuracy) == (2e-6, right(197, "test")), "the worse of real and random inputs"
    assert engine.error == 1e-6
    assert not any(step.over for step in steps)


def test_recovery_is_judged_and_what_it_made_good_again_is_not(account):
    steps = {step.step: step for step in account(truncated=150, final=197)}
    assert steps["truncation"].error == pytest.approx(24.0)
    assert not steps["truncation"].over
    assert steps["recover"].error == pytest.approx(0.5)
    assert not steps["recover"].over
    worse = {step.step: step for step in account(truncated=196, final=150)}
    assert worse["recover"].over


def test_every_step_that_ran_and_no_other_is_there(account):
    assert [step.step for step in account(rank=None, factored=False)] == ["export", "engine"]
    assert account(rank=None)[1].accuracy == right(199, "test"), "of the dense network, where nothing changed"
    small = account(precision="fp16", simplify_error=3e-7)
    assert [step.step for step in small] == ["collapse", "truncation", "simplify", "precision", "engine"]
    assert "in fp16" in small[3].against
    assert [step.over for step in account(final=180, worst=0.5)] == [False, True, True, False]
    assert [step.budget for step in account(max_drop=None)][1] is None


def test_a_real_build_keeps_its_ledger(readme_build):
    folder, _ = readme_build
    report = BuildReport.load(folder / "report.json")
    steps = {step.step: step for step in report.ledger}
    assert {"truncation", "export", "engine"} <= steps.keys()
    assert steps["truncation"].accuracy == report.validation["compressed"]
    assert steps["export"].error == max(each.max_rel for each in report.fidelity if each.role == "compressed")
    assert "## Error ledger" in (folder / "report.md").read_text(encoding="utf-8")
    assert "Error ledger" in (folder / "report.html").read_text(encoding="utf-8")
