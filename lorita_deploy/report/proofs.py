"""Tables of proof: times, ratios, fidelity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from ..records import BuildReport, Comparison, Fidelity, LedgerStep, PrecisionRecord, PrecisionTrial, Receipt
from . import words
from .table import Table


def latency(receipt: Receipt) -> Table:
    """Every artifact's distribution, in milliseconds."""
    rows = [
        (
            series.name,
            words.number(series.median_ms),
            "-".join(words.number(end) for end in series.median_ci95_ms),
            words.percentile(series.p90_ms, series),
            words.percentile(series.p95_ms, series),
            words.percentile(series.p99_ms, series),
            f"{series.n:,}",
            f"{100 * series.spread:.1f} %",
            "unknown" if series.first_ms is None else words.number(series.first_ms),
            words.size(series.peak_memory_bytes),
            words.size(series.file_bytes),
        )
        for series in receipt.series
    ]
    columns = (
        "artifact",
        ">median ms",
        ">95 % interval",
        ">p90",
        ">p95",
        ">p99",
        ">n",
        ">spread",
        ">first",
        ">memory",
        ">file",
    )
    return Table(
        f"Latency on {receipt.host.machine}", columns, tuple(rows), f"{words.setting(receipt)}; started {receipt.started}"
    )


def on_the_board(receipt: Receipt) -> list[Table]:
    """What only some boards can tell: times without transfers, energy. No table where there is neither."""
    rows = []
    for series in receipt.series:
        gpu, energy = series.gpu, series.energy
        if gpu or energy:
            idle = energy.per_call_above_idle_mj if energy else None
            rows.append(
                (
                    series.name,
                    words.number(series.median_ms),
                    words.number(gpu.median_ms) if gpu else "",
                    words.number(gpu.p99_ms) if gpu and gpu.p99_ms else "",
                    words.number(series.throughput_per_s) if series.throughput_per_s else "",
                    words.number(energy.per_call_mj) if energy else "",
                    words.number(idle) if idle is not None else "",
                )
            )
    columns = ("artifact", ">end to end ms", ">GPU alone ms", ">its p99", ">examples/s", ">mJ a call", ">above idle")
    source = next((series.energy.source for series in receipt.series if series.energy), None)
    note = f"energy by the board's own sensors ({source}), not by a wall meter" if source else ""
    return [Table("On the board", columns, tuple(rows), note)] if rows else []


def precisions(found: PrecisionRecord) -> Table:
    """What the dense network was tried in, how right and how fast it was, and why one of them was chosen."""
    rows = [
        (
            trial.precision,
            "chosen" if trial.precision == found.chosen else "refused" if trial.refused else "",
            words.share(trial.accuracy),
            *_time_of(trial),
            words.size(trial.size_bytes),
            str(len(trial.kept_fp32)) if trial.kept_fp32 else "",
            _why(trial, found),
        )
        for trial in found.trials
    ]
    columns = ("precision", "", ">right", ">time", ">95 % interval", ">file", ">nodes in fp32", "why")
    split = f"on {found.trials[0].accuracy.split} data; " if found.trials else ""
    note = f"asked for: {found.asked}. The dense network {split}times of it alone, fp32 = 1"
    return Table("Precisions tried", columns, tuple(rows), note)


def _time_of(trial: PrecisionTrial) -> tuple[str, str]:
    if trial.ratio:
        return f"{trial.ratio.ratio:.2f}", "-".join(f"{end:.2f}" for end in trial.ratio.ci95)
    if trial.precision == "fp32":
        return "1", ""
    return (f"{trial.estimated:.2f}", "estimated") if trial.estimated is not None else ("", "not timed")


def _why(trial: PrecisionTrial, record: PrecisionRecord) -> str:
    if trial.precision == record.chosen:
        if trial.precision == "fp32":
            return "nothing lower is both right often enough and faster"
        return "the fastest that is right often enough" if record.asked == "auto" else "asked for, and right often enough"
    if trial.precision == "fp32":
        return "what the others are compared with"
    return trial.refused or ("no faster than fp32" if trial.relative_time >= 1 else f"slower than {record.chosen}")


def ratios(receipt: Receipt) -> Table:
    """The interleaved comparisons."""
    rows = [(ratio.candidate, ratio.baseline, words.speed(ratio), f"{ratio.n:,}") for ratio in receipt.ratios]
    return Table("Interleaved race", ("candidate", "baseline", "result", ">pairs"), tuple(rows))


def fidelity(checks: Iterable[Fidelity]) -> Table:
    """Artifact against torch."""
    rows = [
        (
            check.role,
            f"{check.examples} {check.inputs}",
            f"{check.max_abs:.1e}",
            f"{check.max_rel:.1e}",
            f"{check.tolerance:.0e}",
            f"{check.cosine:.6f}",
            f"{100 * check.top1_agreement:.1f} %",
            "passed" if check.passed else "FAILED",
        )
        for check in checks
    ]
    columns = ("artifact", "inputs", ">max abs", ">max rel", ">tolerance", ">cosine", ">top-1 agrees", "")
    return Table("Artifact against torch", columns, tuple(rows))


STEPS: tuple[str, ...] = get_args(LedgerStep.model_fields["step"].annotation)
"""In the order in which they come."""


def ledger(report: BuildReport) -> Table:
    """The error and the accuracy after each step that ran; the first one over its budget is named."""
    rows = [
        (
            step.step,
            step.against,
            _error(step, step.error, "not measured"),
            _error(step, step.budget, "none"),
            words.right(step.accuracy) if step.accuracy else "",
            "OVER BUDGET" if step.over else "" if step.error is None or step.budget is None else "within",
        )
        for step in report.ledger
    ]
    over = next((step.step for step in report.ledger if step.over), None)
    note = f"the first step over its budget: {over}" if over else "no step is over its budget"
    if left := [name for name in STEPS if name not in {step.step for step in report.ledger}]:
        note += f"; not part of this build: {', '.join(left)}"
    return Table("Error ledger", ("step", "compared", ">error", ">budget", "after it", ""), tuple(rows), note)


def _error(step: LedgerStep, value: float | None, missing: str) -> str:
    if value is None:
        return missing
    return f"{value:.2f} points" if step.unit == "points" else f"{value:.1e}" if value else "0"


def comparison(found: Comparison) -> Table:
    """Two receipts, series by series."""
    rows = [
        (
            change.name,
            words.number(change.before_ms),
            words.number(change.after_ms),
            f"{100 * change.change:+.1f} %",
            f"{100 * change.ci95[0]:+.1f} % to {100 * change.ci95[1]:+.1f} %",
            change.verdict,
        )
        for change in found.changes
    ]
    columns = ("artifact", ">A ms", ">B ms", ">change", ">95 % interval", "verdict")
    notes = [f"different environments: {'; '.join(found.differences)}"] if found.differences else []
    notes += [f"in one of them only: {', '.join(found.unmatched)}"] if found.unmatched else []
    return Table(f"B against A, tolerance {100 * found.tolerance:g} %", columns, tuple(rows), "; ".join(notes))
