"""What ships in the race and among the files, with what it is held against: the dense network in the same precision."""

from __future__ import annotations

from ..records import Artifact, BuildReport, LatencyRatio, LatencySeries, ratio_between


def name(report: BuildReport) -> str:
    """What the race calls what ships."""
    return report.shipped + _ending(report)


def series(report: BuildReport) -> tuple[LatencySeries, LatencySeries] | None:
    """Dense, shipped; None where they were not timed."""
    found = {each.name: each for each in report.receipt.series} if report.receipt else {}
    names = "dense" + _ending(report), name(report)
    return (found[names[0]], found[names[1]]) if found.keys() >= set(names) else None


def artifacts(report: BuildReport) -> tuple[Artifact, Artifact] | None:
    """Dense, shipped."""
    found = {each.role: each for each in report.artifacts}
    return (found["dense"], found[report.shipped]) if {"dense", report.shipped} <= found.keys() else None


def race(report: BuildReport) -> LatencyRatio | None:
    """Compressed over dense, both in the precision that ships; None where nothing was raced."""
    if report.receipt is None or not report.receipt.ratios:
        return None
    if not _ending(report):
        return report.receipt.ratios[0]
    return ratio_between(report.receipt, "compressed-fp32", "dense-fp32")


def raced_there(report: BuildReport) -> bool:
    """Whether the race ran on the target itself, whatever the times that the plan was made with."""
    return report.estimated_ratio is None and race(report) is not None


def _ending(report: BuildReport) -> str:
    """Of the names of networks in fp32, which a lower precision is raced against."""
    return "-fp32" if report.shipped_precision == "fp32" != report.plan.precision else ""
