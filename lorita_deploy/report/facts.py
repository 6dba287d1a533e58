"""Tables of everything else: the summary of a build, files, machines."""

from __future__ import annotations

from collections.abc import Iterable

from ..records import (
    ArtifactList,
    ArtifactSummary,
    BuildReport,
    CheckpointSummary,
    CompressedRecord,
    EngineSummary,
    Health,
    Host,
    LoadCheck,
    Part,
    Quantization,
    Role,
    StageRecord,
    TensorSpec,
)
from ..targets import Target
from . import shipped, words
from .table import Table


def summary(report: BuildReport) -> Table:
    """Dense against what ships, one row each quantity."""
    rows: list[tuple[str, ...]] = []
    known: set[str] = set()
    role: Role = report.shipped
    for name, of in (("artifacts", report.accuracy), ("networks", report.validation)):
        if "dense" in of and role in of:
            rows.append((f"{name}, {of[role].split} images", words.share(of["dense"]), words.share(of[role])))
    rows.append(("parameters", words.amount(report.params[0]), words.amount(report.params[1])))
    rows.append(("multiply-adds", words.amount(report.macs[0]), words.amount(report.macs[1])))
    if files := shipped.artifacts(report):
        rows.append(("file", *(words.size(each.size_bytes) for each in files)))
    if report.receipt and (pair := shipped.series(report)):
        rows.append(("peak memory", *(words.size(each.peak_memory_bytes) for each in pair)))
        here = f"median, {report.receipt.host.kind}, measured"
        rows.append((here, *(f"{words.number(each.median_ms)} ms" for each in pair)))
        before, after = (each.energy for each in pair)
        if before and after:
            rows.append(("energy a call, by its own sensors", words.millijoules(before), words.millijoules(after)))
        known.add("measured")
    if report.estimated_ratio is not None:
        there = 1.0 if role == "dense" else report.estimated_ratio
        rows.append((f"time, {report.target}, {report.provenance}", "1", f"{there:.2f} of dense"))
        known.add(report.provenance)
    note = "; ".join(f"{word}: {meaning}" for word, meaning in words.MEANING.items() if word in known)
    return Table(f"{report.model} for {report.target}", ("", "dense", f"ships ({role})"), tuple(rows), note)


def stages(records: Iterable[StageRecord]) -> Table:
    rows = tuple((record.name, f"{record.seconds:.1f}", record.line) for record in records)
    return Table("Stages", ("stage", ">seconds", "result"), rows)


def environment(host: Host) -> Table:
    rows = [("machine", words.host(host)), ("kind", host.kind), *host.versions.items()]
    return Table("Environment", ("", ""), tuple(rows))


def hashes(report: BuildReport) -> Table:
    """What exactly was built from what."""
    rows = [(artifact.path, artifact.sha256) for artifact in report.artifacts]
    raced = report.receipt.series if report.receipt else ()
    known = {artifact.sha256 for artifact in report.artifacts}
    rows += [(f"{each.name}, raced along", each.sha256) for each in raced if each.sha256 not in known]
    rows += [("plan", report.plan.digest()), ("dense network", report.plan.network_sha256)]
    return Table("Hashes (sha256)", ("", ""), tuple(rows))


def weights(found: CheckpointSummary) -> Table:
    """The tensors of a weight file."""
    rows = [(tensor.name, tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar") for tensor in found.tensors]
    kind = f"factors of a LoRITa training, N = {found.depth}" if found.depth else "plain weights"
    note = f"{kind}; {found.params:,} numbers, {words.size(found.size_bytes)}, sha256 {found.sha256[:16]}..."
    return Table(found.path, ("tensor", "type", "shape"), tuple(rows), note)


def artifact(found: ArtifactSummary) -> Table:
    """What an ONNX file holds."""
    rows = [
        ("opset, IR", f"{found.opset}, {found.ir_version}"),
        ("producer", found.producer),
        *(("input", _tensor(spec)) for spec in found.inputs),
        *(("output", _tensor(spec)) for spec in found.outputs),
        ("operators", ", ".join(f"{count} {name}" for name, count in found.operators.items())),
        *(("operators of", domain) for domain in found.domains),
        ("weights", f"{found.params:,} numbers, {words.size(found.size_bytes + found.external_bytes)}"),
        ("stored as", ", ".join(f"{count:,} {name}" for name, count in found.weights.items())),
        ("multiply-adds", "unknown" if found.macs is None else words.amount(found.macs)),
        *([("quantization", _quantization(found.quantization))] if found.quantization else []),
        *(("external data", name) for name in found.external_data),
        *(("note", note) for note in found.notes),
        *((key, text) for key, text in found.metadata.items()),
        ("sha256", found.sha256),
    ]
    return Table(found.path, ("", ""), tuple(rows))


def _quantization(found: Quantization) -> str:
    kinds = f"{found.quantize} QuantizeLinear and {found.dequantize} DequantizeLinear, {found.per_channel} per channel"
    zero = "all zero" if not found.nonzero and not found.unknown else f"{found.nonzero} not zero, {found.unknown} unknown"
    return f"{kinds}; zero points ({', '.join(found.dtypes)}): {zero}"


def engine(found: EngineSummary) -> Table:
    """What the first bytes of an engine say."""
    gpus = f"{', '.join(found.gpus)} ({found.gpus_from})" if found.gpus else "not stated"
    before = f"{found.prefix}; the plan begins at byte {found.offset_bytes:,}" if found.offset_bytes else "nothing"
    rows = [
        ("built by", f"{found.runtime} {found.version or 'of unknown version'}"),
        ("GPUs", gpus),
        ("before the plan", before),
        ("size", words.size(found.size_bytes)),
        *(("note", note) for note in found.notes),
        ("sha256", found.sha256),
    ]
    return Table(found.path, ("", ""), tuple(rows))


def loading(found: LoadCheck) -> Table:
    """Whether a file would load on a target."""
    rows = [(each.subject, each.state, each.found, each.fix or "") for each in found.findings]
    return Table(f"{found.path} on {found.target}, {found.runtime}", ("", "state", "found", "do"), tuple(rows))


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {'x'.join(map(str, spec.shape))}"


def health(found: Health) -> Table:
    """What was looked at on a machine."""
    rows = [(each.subject, each.state, each.found, each.fix or "") for each in found.findings]
    return Table(words.host(found.host), ("", "state", "found", "do"), tuple(rows))


def fields(record: Part, title: str) -> Table:
    """A record without a table of its own: its plain entries, and how many there are of the others."""
    rows = []
    for key, value in record.model_dump(mode="json").items():
        plain = value if isinstance(value, str | int | float | None) else f"{len(value)} entries" if value else "none"
        rows.append((key, str(plain)))
    return Table(title, ("", ""), tuple(rows))


def artifacts(found: ArtifactList) -> Table:
    """What was exported."""
    rows = [
        (
            each.role,
            each.path,
            str(each.opset),
            str(each.ir_version),
            each.precision,
            "any" if each.dynamic_batch else str(each.batch),
            words.size(each.size_bytes),
            "; ".join(each.notes),
        )
        for each in found.artifacts
    ]
    columns = ("", "file", ">opset", ">IR", "precision", ">batch", ">size", "notes")
    return Table("Artifacts", columns, tuple(rows))


def compressed(found: CompressedRecord) -> Table:
    """Size and quality of the network in its chosen forms."""
    rows = [("parameters", words.amount(found.params)), ("multiply-adds", words.amount(found.macs))]
    rows += [(accuracy.split, words.right(accuracy)) for accuracy in found.accuracy]
    return Table("Compressed", ("", ""), tuple(rows))


def target(found: Target) -> Table:
    """A target's numbers, each table with its source."""
    rows = [("title", found.title), ("aliases", ", ".join(found.aliases)), ("runtime", found.runtime)]
    if found.profile:
        rows.append(("profiles", ", ".join(f"{found.name}@{name}" for name in found.profiles)))
        stack = found.profile.model_dump(exclude={"opset", "opset_max", "ir_version", "ir_version_max"})
        rows += [(f"{found.profile.name}: {key}", _plain(value)) for key, value in stack.items() if key != "name"]
    for name, part in (("limits", found.limits), ("roofline", found.roofline)):
        rows += [(f"{name}: {key.replace('_', ' ')}", _plain(value)) for key, value in part.model_dump().items()]
        rows.append((f"{name}: source", found.source[name]))
    return Table(found.spelled, ("", ""), tuple(rows))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)
