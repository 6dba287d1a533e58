"""A whole build report, as records."""

import pytest

from lorita_deploy.records import (
    Accuracy,
    Artifact,
    Budget,
    BuildReport,
    Candidate,
    Choice,
    CollapsedRecord,
    Energy,
    Fidelity,
    Geometry,
    GroupChoice,
    Host,
    LatencyRatio,
    Layer,
    LayerTime,
    LedgerStep,
    LeftAlone,
    Plan,
    PrecisionRecord,
    PrecisionTrial,
    PriceTable,
    Probe,
    StageRecord,
)

HOST = Host(machine="Builder", kind="cpu", cores=2, memory_bytes=2**34, system="Linux 6.1 x86_64", versions={"torch": "2.11"})
CONV = Geometry(
    kind="conv2d",
    out_channels=64,
    in_channels=32,
    kernel=(3, 3),
    stride=(2, 2),
    padding=(1, 1),
    in_shape=(16, 16),
    out_shape=(8, 8),
)
HEAD = Geometry(kind="linear", out_channels=10, in_channels=64)
SPECTRUM = (1.0, 0.5, 0.25, 0.0005, *(0.0,) * 60)


def right(correct, split="test", metric="accuracy"):
    return Accuracy(metric=metric, split=split, correct=correct, total=360)


def artifact(role):
    return Artifact(
        role=role,
        path=f"{role}.onnx",
        exporter="onnx",
        sha256=role[0] * 64,
        size_bytes=2_000_000 if role == "dense" else 700_000,
        opset=17,
        ir_version=8,
        precision="fp32",
        batch=1,
        dynamic_batch=False,
        rung=0,
        simplified=True,
        inputs=(),
        outputs=(),
    )


@pytest.fixture
def collapsed():
    return CollapsedRecord(
        model="tiny",
        classes=10,
        input_shapes=((32, 16, 16),),
        layers=(
            Layer(name="conv", geometry=CONV, group="conv", spectrum=SPECTRUM),
            Layer(name="head", geometry=HEAD, group="head", spectrum=(1.0,) * 10),
        ),
        left_alone=(LeftAlone(layer="depth|wise", reason="depthwise"),),
        params=19_146,
        macs=1_180_288,
        collapse_error=1e-7,
        accuracy=(right(352, "validation"),),
        weights_sha256="c" * 64,
    )


@pytest.fixture
def plan():
    return Plan(
        model="tiny",
        network_sha256="c" * 64,
        target="cpu",
        precision="fp32",
        budget=Budget(max_drop=0.5),
        provenance="measured",
        dense_us=430.0,
        predicted_us=187.0,
        predicted_loss=0.0123,
        groups=(GroupChoice(group="conv", width=64, kept=64),),
        choices=(
            Choice(layer="conv", form="pair", k_in=32, k_out=64, rank=8, predicted_loss=0.0123, us=137.0, dense_us=380.0),
            Choice(layer="head", form="dense", k_in=64, k_out=10, rank=None, predicted_loss=0.0, us=5.0, dense_us=5.0),
        ),
        solver="HiGHS, optimal, gap 0",
        probes=(
            Probe(budget_us=200, predicted_us=187, predicted_loss=0.0123, accuracy=right(350, "validation"), accepted=True),
        ),
        notes=("a note of the plan",),
    )


@pytest.fixture
def prices():
    times = {"conv|dense|32x64|full|fp32": 380.0, "conv|pair|32x64|8|fp32": 137.0}
    times |= {"head|dense|64x10|full|fp32": 5.0, "head|pair|64x10|8|fp32": 6.5}
    return PriceTable(
        network_sha256="c" * 64,
        target="cpu",
        runtime="onnxruntime",
        precision="fp32",
        threads=1,
        batch=1,
        host=HOST,
        provenance="measured",
        method="ladder",
        network_us=430.0,
        rest_us=45.0,
        times=tuple(LayerTime(candidate=key, us=us, provenance="measured") for key, us in times.items()),
    )


@pytest.fixture
def offered():
    def candidate(layer, form, k_in, k_out, rank, loss):
        return Candidate(
            layer=layer,
            group=layer,
            form=form,
            k_in=k_in,
            k_out=k_out,
            rank=rank,
            precision="fp32",
            params=1,
            macs=1,
            predicted_loss=loss,
        )

    return (
        candidate("conv", "dense", 32, 64, None, 0.0),
        candidate("conv", "pair", 32, 64, 8, 0.0123),
        candidate("head", "dense", 64, 10, None, 0.0),
        candidate("head", "pair", 64, 10, 8, 0.5),
    )


@pytest.fixture
def report(collapsed, plan, make_receipt):
    """Built for this very machine, compressed network shipped."""
    check = Fidelity(
        role="compressed",
        inputs="real",
        examples=8,
        max_abs=1e-5,
        max_rel=2e-6,
        cosine=0.999999,
        top1_agreement=1.0,
        tolerance=1e-3,
    )
    return BuildReport(
        model="tiny",
        target="cpu",
        provenance="measured",
        shipped="compressed",
        artifact="model.onnx",
        headline="2.00x faster",
        estimated_ratio=None,
        accuracy={"dense": right(352), "compressed": right(350)},
        validation={"dense": right(340, "validation"), "compressed": right(339, "validation")},
        params=(19_146, 3_000),
        macs=(1_180_288, 200_000),
        artifacts=(artifact("compressed"), artifact("dense")),
        fidelity=(check,),
        plan=plan,
        receipt=make_receipt(dense=0.4321, compressed=0.2109),
        host=HOST,
        stages=(StageRecord(name="data", key="k", outputs={}, seconds=1.2, line="digits | 1,797 images"),),
        left_alone=collapsed.left_alone,
        notes=("a note of the build",),
        collapsed=collapsed,
        ledger=(
            LedgerStep(step="collapse", against="plain against factored", unit="relative", error=1e-7, budget=1e-3),
            LedgerStep(
                step="truncation",
                against="cut against dense",
                unit="points",
                error=0.28,
                budget=0.5,
                accuracy=right(339, "validation"),
            ),
            LedgerStep(step="export", against="compressed.onnx against torch", unit="relative", error=2e-6, budget=1e-3),
            LedgerStep(step="simplify", against="before and after onnxsim", unit="relative", error=0.0, budget=1e-3),
            LedgerStep(step="engine", against="timed against golden", unit="relative", error=None, budget=1e-3),
        ),
    )


@pytest.fixture
def large(report):
    """A network of 120 layers with long names, most of them changed, and many probes."""
    names = [f"encoder.layers.encoder_layer_{place}.self_attention.out_proj" for place in range(120)]
    layers = tuple(
        Layer(name=name, geometry=CONV, group=name, spectrum=tuple(0.9 ** (1 + place % 7) ** value for value in range(64)))
        for place, name in enumerate(names)
    )
    choices = tuple(
        Choice(layer=name, form="dense", k_in=32, k_out=64, rank=None, predicted_loss=0.0, us=9.0, dense_us=9.0)
        if place % 5 == 0
        else Choice(
            layer=name,
            form="pair",
            k_in=32,
            k_out=64,
            rank=8,
            predicted_loss=1e-4,
            us=9.0 - place % 5,
            dense_us=9.0 + place / 20,
        )
        for place, name in enumerate(names)
    )
    dense_us, us = (30.0 + sum(getattr(choice, field) for choice in choices) for field in ("dense_us", "us"))
    probes = tuple(
        Probe(
            budget_us=us,
            predicted_us=us + (dense_us - us) * place / 40,
            predicted_loss=0.1,
            accuracy=right(330 + place // 4, "validation"),
            accepted=place > 30,
        )
        for place in range(40)
    )
    changes = {"choices": choices, "dense_us": dense_us, "predicted_us": us, "probes": probes}
    plan = report.plan.model_copy(update=changes)
    return report.model_copy(update={"plan": plan, "collapsed": report.collapsed.model_copy(update={"layers": layers})})


@pytest.fixture
def estimated(report):
    """The same for a board that was not asked."""
    plan = report.plan.model_copy(
        update={"provenance": "estimated", "target": "jetson-orin-nano", "dense_us": 77.7, "predicted_us": 33.3}
    )
    changes = {"target": "jetson-orin-nano", "provenance": "estimated", "plan": plan, "estimated_ratio": 33.3 / 77.7}
    return report.model_copy(update=changes)


@pytest.fixture
def int8(report):
    """Built on a board with sensors, in the precision that won there; fp16 was refused."""

    def trial(precision, correct, time, **others):
        ci95 = (time - 0.01, time + 0.01)
        raced = LatencyRatio(candidate=precision, baseline="fp32", n=12, reloads=12, ratio=time, ci95=ci95)
        found = {"accuracy": right(correct, "validation"), "ratio": None if precision == "fp32" else raced} | others
        return PrecisionTrial(precision=precision, **{"size_bytes": 2_000_000, **found})

    trials = (
        trial("fp32", 340, 1.0),
        trial("fp16", 340, 1.12, size_bytes=1_000_000, refused="it is not faster here than fp32 (1.12x the time of fp32)"),
        trial("int8", 339, 0.4, size_bytes=510_000, kept_fp32=("conv", "head")),
    )
    drawn = {"dense": 9.2, "compressed": 4.1}
    series = tuple(
        each.model_copy(update={"energy": used(drawn[each.name])}) if each.name in drawn else each
        for each in report.receipt.series
    )
    changes = {"precision": PrecisionRecord(asked="auto", chosen="int8", trials=trials), "shipped_precision": "int8"}
    return report.model_copy(update=changes | {"receipt": report.receipt.model_copy(update={"series": series})})


@pytest.fixture
def back_to_fp32(int8, make_receipt):
    """Planned in int8, which was three times as fast as dense in int8 and no faster than the network in fp32, which ships."""
    files = tuple(
        artifact(role).model_copy(update={"path": f"{role}-fp32.onnx", "sha256": digit * 64})
        for role, digit in (("compressed", "1"), ("dense", "2"))
    )
    changes = {
        "shipped_precision": "fp32",
        "plan": int8.plan.model_copy(update={"precision": "int8"}),
        "artifacts": files,
        "receipt": make_receipt(dense=0.3, compressed=0.1, **{"dense-fp32": 0.8, "compressed-fp32": 0.08}),
    }
    return int8.model_copy(update=changes)


def used(per_call_mj):
    """Of a call, on a board that draws 3 W at rest."""
    return Energy(
        source="INA3221 VDD_IN",
        mean_mw=4600.0,
        idle_mw=3000.0,
        per_call_mj=per_call_mj,
        per_call_above_idle_mj=per_call_mj / 3,
        calls=5000,
        seconds=10.0,
        readings=100,
    )
