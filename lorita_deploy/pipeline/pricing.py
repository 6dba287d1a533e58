"""Stage price: what every candidate costs, measured on the target, read from a table, or estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compress.candidates import candidates, narrow_candidates, width_offers, width_variants
from ..compress.plan import narrowed_widths
from ..compress.rewrite import duplicate
from ..ports import ForTiming
from ..records import Candidate, CandidateTable, GroupChoice, PriceTable, WidthOffer
from .calibrated import calibration_key
from .carried import bettered, carried_file
from .context import Build, Stage
from .exporting import export, export_dense, runtime_of
from .folder import sha256_of

if TYPE_CHECKING:
    from ..measure.layer_times import Narrowed


def _price_key(build: Build) -> dict[str, Any]:
    options = build.options
    measured = {"host": build.host_key, "settings": build.settings.model_dump()} if build.on_target else {}
    return {
        "calibration": calibration_key(build),
        "target": build.target.model_dump(),
        "precision": build.precision,
        "opset": build.opset,
        "batch": (options.batch, options.dynamic_batch),
        "simplify": options.simplify,
        "layer_times": options.layer_times and sha256_of(Path(options.layer_times)),
        "receipt": options.receipt and sha256_of(carried_file(Path(options.receipt))),
        "trust": options.trust_times,
        **measured,
    }


def _run_price(build: Build) -> str:
    record, layers, precision = build.calibration.record, build.collapsed.layers, build.precision
    multiple = build.target.limits.rank_multiple.get(precision, 8)
    widths = width_offers(record.groups, multiple=multiple)
    offered = candidates(layers, record, multiple=multiple, precision=precision)
    offered += narrow_candidates(layers, record, widths, multiple=multiple, precision=precision)
    CandidateTable(candidates=offered, widths=widths).save(build.folder / "candidates.json")
    table = _priced(build, offered, widths)
    if build.options.receipt:
        table = bettered(build, table, offered)
    table.save(build.folder / "prices.json")
    whole = f", dense {table.network_us / 1e3:.3g} ms" if table.provenance == "measured" else ""
    return f"{len(offered)} candidates, {table.provenance}{whole}"


def _priced(build: Build, offered: Sequence[Candidate], widths: Sequence[WidthOffer]) -> PriceTable:
    common: dict[str, Any] = {
        "layers": build.geometries,
        "network_sha256": build.collapsed.weights_sha256,
        "target": build.target,
        "precision": build.precision,
    }
    if build.options.layer_times:
        from ..measure.price_table import TablePricer

        host = build.board.host(build.kind) if build.on_target else None
        path, trust = Path(build.options.layer_times), build.options.trust_times
        return TablePricer(path, host=host, settings=build.settings, trust=trust, **common).price(offered)
    workdir = build.folder / "pricing"
    dense = workdir / export_dense(build, workdir, "fp32").path  # its variants are made in fp32, and then lowered
    if not build.on_target:
        from ..measure.roofline import RooflinePricer

        return RooflinePricer(dense, batch=build.options.batch, **common).price(offered)
    from ..measure.layer_times import MeasuredPricer

    common |= {"device": build.board, "settings": build.settings, "progress": build.watch.progress, "lower": _lower(build)}
    pricer = MeasuredPricer(dense, **common)
    return pricer.price(offered, list(_narrowed(build, widths, workdir)))


def _lower(build: Build) -> Callable[[bytes], bytes] | None:
    """What makes a variant of the build's precision; None where prices are of fp32 anyway, or the exporter offers nothing."""
    exporter, precision, runtime = build.exporter, build.precision, runtime_of(build)
    if precision == "fp32" or not isinstance(exporter, ForTiming):
        return None
    return lambda content: exporter.for_timing(content, precision, runtime)


def _narrowed(build: Build, widths: Sequence[WidthOffer], workdir: Path) -> Iterator[Narrowed]:
    """Dense networks with fewer channels, for their times only: which channels they keep does not matter."""
    for number, kept in enumerate(width_variants(widths)):
        network = duplicate(build.dense)
        build.narrowable.resize(network, kept)
        folder = workdir / f"narrow-{number}"
        path = folder / export(build, network, "dense", folder, metadata={}, precision="fp32").path
        choices = [
            GroupChoice(group=each.group, width=each.kept[0], kept=kept.get(each.group, each.kept[0])) for each in widths
        ]
        yield path, narrowed_widths(choices, build.geometries, build.calibration.record.groups)[0]


PRICE = Stage("price", lambda build: ("candidates.json", "prices.json"), _price_key, _run_price)
