"""The report at the end of a build: everything the stages found, gathered from their documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..records import BuildReport, Role, write_atomically
from ..report.markdown import render
from ..targets import this_host

if TYPE_CHECKING:
    from .context import Build


def write_report(build: Build) -> BuildReport:
    """Write report.json and report.md."""
    report = gather(build)
    report.save(build.folder / "report.json")
    write_atomically(build.folder / "report.md", render(report).encode())
    return report


def gather(build: Build) -> BuildReport:
    """The `BuildReport` of a build whose bench stage is done."""
    from .shipping import decide

    dense, compressed, plan, receipt = build.collapsed, build.compressed.record, build.plan, build.receipt
    shipped = decide(build, receipt)
    is_dense = shipped == "dense"
    stages = tuple(record for name in _stage_names() if (record := build.folder.record(name)) is not None)
    draft = BuildReport(
        model=build.options.model,
        target=build.target.name,
        provenance=plan.provenance,
        shipped=shipped,
        artifact="model.onnx",
        headline="",
        estimated_ratio=None if build.local else plan.predicted_us / plan.dense_us,
        accuracy=build.fidelity.accuracy,
        validation={"dense": build.validation(), "compressed": compressed.accuracy[0]},
        params=(dense.params, dense.params if is_dense else compressed.params),
        macs=(dense.macs, dense.macs if is_dense else compressed.macs),
        artifacts=build.artifacts,
        fidelity=build.fidelity.checks,
        plan=plan,
        receipt=receipt,
        host=this_host(),
        stages=stages,
        left_alone=dense.left_alone,
        notes=tuple(build.notes),
    )
    return draft.model_copy(update={"headline": headline(draft)})


def headline(report: BuildReport) -> str:
    """One line of result, in words that cannot be mistaken for more than was measured."""
    from .shipping import describe_ratio

    assert report.receipt is not None
    measured = report.receipt.ratios[0]
    if report.shipped == "dense":
        line = "ships the dense network: no compressed form was faster"
    elif report.estimated_ratio is not None:
        line = (
            f"estimated {1 / report.estimated_ratio:.2f}x faster on {report.target}; cpu, measured: {describe_ratio(measured)}"
        )
    else:
        line = f"{describe_ratio(measured)}, measured"
    role: Role = report.shipped
    if role in report.accuracy:
        dense, found = report.accuracy["dense"], report.accuracy[role]
        if found.metric == "score":
            line += f"; score {dense.value:.4g} -> {found.value:.4g}"
        else:
            word = "agree with dense" if found.metric == "agreement" else "right"
            line += f"; {word}: {dense.correct:,.0f} -> {found.correct:,.0f} of {found.total:,} {found.split} images"
    return line


def _stage_names() -> tuple[str, ...]:
    from .build import STAGES

    return STAGES
