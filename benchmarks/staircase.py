"""Why multiply-adds are not milliseconds: two layers of VGG16 with as many of them, dense, as pairs, and with fewer channels.

    python benchmarks/staircase.py [LAYER ...]    measures; writes staircase.json, staircase.md and docs/images/staircase.svg
    python benchmarks/staircase.py --show         only writes the page and the picture again

Each layer stands alone in a file, batch norm folded, with its ReLU, as the exporter would write it; weights are random, which
changes no time. All sizes of a layer are raced against the dense one by the bundle's own runner: interleaved, everything loaded
anew for each of its reloads, one thread, batch 1. What a runtime does around a layer (changes of layout) is in every time;
`build` measures layers between their neighbours instead.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import setting

from lorita_deploy.records import Settings
from lorita_deploy.report import svg

if TYPE_CHECKING:
    from onnx import ModelProto

HERE = setting.HERE
RESULTS, PAGE, PICTURE = HERE / "staircase.json", HERE / "staircase.md", HERE.parent / "docs" / "images" / "staircase.svg"
LAYERS = {"features.3": (64, 32, 4), "features.17": (256, 8, 8)}
"""Of VGG16 on 32 x 32 images: channels (read and written), height and width, step of ranks and widths."""
SETTINGS = Settings(runtime="onnxruntime", threads=1, graph_level="all", spinning=False, batch=1)
SAMPLES, SECONDS = 300, 30.0
FORMS = {"pair": "pair of rank r", "narrow": "fewer output channels"}
Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------- measuring


def sizes(layer: str) -> Iterator[tuple[str, int]]:
    """(form, rank or width) of everything that is raced: ranks up to the full one, widths below it."""
    channels, _, step = LAYERS[layer]
    yield "dense", channels
    yield from (("pair", rank) for rank in range(step, channels + 1, step))
    yield from (("narrow", width) for width in range(step, channels, step))


def macs(layer: str, form: str, size: int) -> int:
    """Multiply-adds of one call: r (m + n) for a pair, k n for k outputs, at each position; n = inputs * 9."""
    m, side, _ = LAYERS[layer]
    n = 9 * m
    return (size * (m + n) if form == "pair" else size * n) * side * side


def convolution(inputs: int, outputs: int, side: int) -> ModelProto:
    """3 x 3 with bias, then ReLU; the initializer is named as the exporter names it."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    drawn = np.random.default_rng(0).standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
    weights = {"layer.weight": drawn.astype(np.float32), "layer.bias": np.zeros(outputs, np.float32)}
    nodes = [
        helper.make_node("Conv", ["input", *weights], ["outputs"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["outputs"], ["output"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])
        for name, channels in (("input", inputs), ("output", outputs))
    ]
    stored = [numpy_helper.from_array(each, name) for name, each in weights.items()]
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(layer: str) -> Row:
    """One race over all sizes of a layer."""
    from lorita_deploy.devices.local import LocalDevice
    from lorita_deploy.measure.variants import make_variant
    from lorita_deploy.records import Receipt

    channels, side, _ = LAYERS[layer]
    raced = {f"{form}-{size}": (form, size) for form, size in sizes(layer)}
    with tempfile.TemporaryDirectory() as name:
        folder, artifacts = Path(name), []
        for each, (form, size) in raced.items():
            model = convolution(channels, channels if form == "pair" else size, side)
            content = (make_variant(model, ["layer"], {"layer": size}).model if form == "pair" else model).SerializeToString()
            (folder / f"{each}.onnx").write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            artifacts.append({"name": each, "path": f"{each}.onnx", "sha256": digest})
        job = {
            "tasks": ["race"],
            "settings": SETTINGS.model_dump(),
            "artifacts": artifacts,
            "baseline": f"dense-{channels}",
            "samples": SAMPLES,
            "max_seconds": SECONDS,
        }
        receipt = Receipt.load(LocalDevice().run(folder, job, timeout_s=900))
    medians = {each.name: each.median_ms for each in receipt.series}
    ratios = {each.candidate: (each.ratio, each.ci95) for each in receipt.ratios}
    rows = []
    for each, (form, size) in raced.items():
        ratio, interval = ratios.get(each, (1.0, (1.0, 1.0)))
        share = macs(layer, form, size) / macs(layer, "dense", channels)
        rows.append({"form": form, "size": size, "macs": share, "ms": medians[each], "time": ratio, "ci95": interval})
    return {
        "machine": receipt.host.machine,
        "onnxruntime": receipt.host.versions["onnxruntime"],
        "reloads": receipt.ratios[0].reloads,
        "load": receipt.load_before,
        "warnings": [each for each in receipt.warnings if not each.startswith(tuple(raced))],
        "rows": rows,
    }


# ---------------------------------------------------------------------------------------------- showing

WIDTH, HEIGHT = 860.0, 430.0
LEFT, BETWEEN, RIGHT, TOP, BOTTOM = 44.0, 64.0, 12.0, 64.0, 92.0
LONGEST = 1.15
"""End of the axis of multiply-adds, of dense: a pair of full rank has more of them than the layer."""
STYLE = (
    "svg{--paper:#fff;--ink:#1a1f26;--soft:#56606c;--grid:#e9ecf0;--pair:#0b67b2;--narrow:#b3400a}"
    "@media (prefers-color-scheme:dark){svg{--paper:#0e1217;--ink:#e7ebf0;--soft:#9ba6b3;--grid:#232b34;--pair:#62b0f5;"
    "--narrow:#ff9a62}}"
    'svg{background:var(--paper)}text{font:12px system-ui,"DejaVu Sans",sans-serif;fill:var(--ink)}'
    "text.tick,text.axis-title{fill:var(--soft)}text.name{font-weight:600}"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.dense{stroke:var(--ink)}"
    ".promise{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}"
    "polyline{fill:none;stroke-width:1}polyline.pair{stroke:var(--pair)}polyline.narrow{stroke:var(--narrow)}"
    "path.pair{fill:var(--pair)}path.narrow{fill:var(--narrow)}"
)
DOTS = {"pair": "M-3,0A3,3 0 1 0 3,0A3,3 0 1 0 -3,0Z", "narrow": "M0,-4L4,0L0,4L-4,0Z"}


def picture(results: dict[str, Row]) -> str:
    """Time over multiply-adds, both relative to dense, one panel for each layer; the dashed line is what counting promises."""
    room = (WIDTH - LEFT - RIGHT - BETWEEN * (len(LAYERS) - 1)) / len(LAYERS)
    parts = [svg.element("style", STYLE)]
    for place, layer in enumerate(LAYERS):
        left = LEFT + place * (room + BETWEEN)
        parts.append(_panel(layer, results[layer]["rows"], left, left + room))
    x, base = LEFT, HEIGHT - 14
    for form, said in FORMS.items():
        parts += [_dot(form, x, base - 4), svg.label(x + 12, base, said)]
        x += svg.text_width(said) + 36
    parts += [svg.line(x - 6, base - 4, x + 20, base - 4, "promise")]
    parts += [svg.label(x + 28, base, "what counting multiply-adds promises")]
    drawn = svg.chart(WIDTH, HEIGHT, "Time of a layer over its multiply-adds", f"Measured on {_machine(results)}.", *parts)
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _panel(layer: str, rows: list[Row], left: float, right: float) -> str:
    channels, side, _ = LAYERS[layer]
    bottom = HEIGHT - BOTTOM
    x, y = svg.Scale(0.0, LONGEST, left, right), svg.Scale(0.0, svg.span([row["time"] for row in rows])[1], bottom, TOP)
    dense = next(row["ms"] for row in rows if row["form"] == "dense")
    parts = [
        svg.label(left - LEFT + 2, 22, f"{layer}: {channels} channels at {side}x{side}, dense {dense:.2f} ms", class_="name"),
        svg.label(left - LEFT + 2, TOP - 14, "time, of dense", class_="axis-title"),
        svg.x_axis(x, TOP, bottom, "multiply-adds, of dense"),
        svg.y_axis(y, left, right, ""),
        svg.line(x(0.0), y(0.0), x(LONGEST), y(min(LONGEST, y.high)), "promise"),
        svg.line(left, y(1.0), right, y(1.0), "dense"),
    ]
    for form in FORMS:
        found = [row for row in rows if row["form"] == form]
        parts.append(svg.polyline([(x(row["macs"]), y(row["time"])) for row in found], form))
        for row in found:
            said = f"{FORMS[form]}, {row['size']}: {_interval(row)} of the time, {row['macs']:.2f} of the multiply-adds"
            parts.append(_dot(form, x(row["macs"]), y(row["time"]), said))
    return "".join(parts)


def _dot(form: str, x: float, y: float, tip: str = "") -> str:
    hint = svg.element("title", svg.escape(tip)) if tip else ""
    return svg.element("path", hint, d=DOTS[form], transform=f"translate({x:.1f} {y:.1f})", class_=form)


def _interval(row: Row) -> str:
    return f"{row['time']:.3f} ({row['ci95'][0]:.3f}-{row['ci95'][1]:.3f})"


def _machine(results: dict[str, Row]) -> str:
    found = sorted({f"{each['machine']}, onnxruntime {each['onnxruntime']}" for each in results.values()})
    return f"{'; '.join(found)}, one thread, batch 1"


def page(results: dict[str, Row]) -> str:
    """The text of staircase.md."""
    lines = ["# Time over multiply-adds", ""]
    lines += [f"`python benchmarks/staircase.py`: {_machine(results)}. Time and multiply-adds (MACs) are those of the dense"]
    lines += ["layer; the time is the median over reloads of the paired ratio, with its 95 % interval. Drawn in"]
    lines += ["[docs/images/staircase.svg](../docs/images/staircase.svg).", ""]
    for layer, result in results.items():
        channels, side, _ = LAYERS[layer]
        dense = next(row["ms"] for row in result["rows"] if row["form"] == "dense")
        lines += [f"## {layer}: 3 x 3, {channels} channels at {side} x {side}", ""]
        lines += [f"Dense {dense:.3f} ms; {result['reloads']} reloads; load average before: {result['load']:.2f}.", ""]
        lines += [f"* {each}" for each in result["warnings"]] + [""] * bool(result["warnings"])
        for form, said in FORMS.items():
            rows = [row for row in result["rows"] if row["form"] == form]
            cells = [(row["size"], f"{row['macs']:.3f}", _interval(row), _verdict(row)) for row in rows]
            lines += [*setting.table((said, "MACs", "time", ""), cells), ""]
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    low, high = row["ci95"]
    return "faster" if high < 1 else "slower" if low > 1 else "as fast"


def main() -> None:
    asked = [each for each in sys.argv[1:] if each != "--show"] or ([] if "--show" in sys.argv else list(LAYERS))
    for layer in asked:
        setting.keep(RESULTS, layer, measure(layer))
    results = json.loads(RESULTS.read_text())
    results = {layer: results[layer] for layer in LAYERS}
    PAGE.write_text(page(results))
    PICTURE.write_text(picture(results))


if __name__ == "__main__":
    main()
