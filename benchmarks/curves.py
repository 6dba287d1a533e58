"""What the rows of compressors.py say: a table for each network, the verdicts on the bars, a picture. From rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

from setting import heading, table

from lorita_deploy.report import svg

METHODS = {
    "dense": "dense, LoRITa N = 3",
    "dense N=1": "dense, N = 1",
    "ours": "this compressor",
    "uniform": "SVD, one share of every rank",
    "paper": "SVD, the paper's threshold",
    "magnitude": "torch-pruning, magnitude",
    "taylor": "torch-pruning, Taylor",
}
OWN = ("dense", "ours")
"""What is on our front: the dense network ships where nothing is faster."""
RIVALS = ("uniform", "paper", "magnitude", "taylor")
SHAPES = {"dense": "dense", "dense N=1": "dense", "ours": "kept", "uniform": "lossy", "paper": "predicted"}
SHAPES |= {"magnitude": "over", "taylor": "below"}
LOST, BAR, BAR_NETWORK = 1.0, 1.2, "vgg16"
"""Points of accuracy, and how much faster than the best rival at that loss this compressor is to be, and on what."""
CHANCE = 0.05
SHOWN = 12.0
"""Points below the best dense network that the picture reaches down to."""

Point = dict[str, Any]
WRONG = {"fine-tuned": "wrong", "not fine-tuned": "wrong_untuned"}

# ---------------------------------------------------------------------------------------------- comparing points


def misses(point: Point, key: str) -> set[str]:
    """Numbers of the test images that a point is wrong about."""
    return set(point[key].split())


def less_right(one: Point, other: Point, key: str) -> bool:
    """Whether ``one`` is wrong more often than ``other`` beyond chance: exact sign test on the images that only one of the
    two is wrong about, two-sided at 5 %."""
    only, others = misses(one, key) - misses(other, key), misses(other, key) - misses(one, key)
    n = len(only) + len(others)
    tail = sum(comb(n, k) for k in range(len(only), n + 1)) / 2**n
    return len(only) > len(others) and 2 * tail < CHANCE


def slower(one: Point, other: Point) -> bool:
    """By intervals that do not meet."""
    return bool(one["ci95"][0] > other["ci95"][1])


def above(rival: Point, front: Sequence[Point], key: str) -> str | None:
    """``beyond chance`` where every point of ``front`` is slower than ``rival`` or less right, ``by count`` where that takes
    every single image at its word; None where some point of the front is as good."""
    if all(slower(each, rival) or less_right(each, rival, key) for each in front):
        return "beyond chance"
    if all(slower(each, rival) or len(misses(each, key)) > len(misses(rival, key)) for each in front):
        return "by count"
    return None


def fastest(row: dict[str, Any], methods: Sequence[str], most_wrong: float, key: str) -> Point | None:
    """Of the points of ``methods`` that are wrong about at most ``most_wrong`` test images."""
    points = [each for each in row["points"] if each["method"] in methods and len(misses(each, key)) <= most_wrong]
    return min(points, key=lambda each: float(each["ratio"]), default=None)


def advantage(ours: Point, other: Point) -> tuple[float, float, float]:
    """How much faster, with the worst cases of both intervals."""
    low, high = other["ci95"][0] / ours["ci95"][1], other["ci95"][1] / ours["ci95"][0]
    return other["ratio"] / ours["ratio"], low, high


# ---------------------------------------------------------------------------------------------- the page


def document(rows: Sequence[dict[str, Any]]) -> str:
    lines = heading("This compressor and others", "compressors.py", max(row["load"] for row in rows))
    first = rows[0]
    lines += [
        "Every network was trained twice by its recipe: as a product of three factors (LoRITa), where low rank and this "
        "compressor start, and plainly (N = 1), where torch-pruning starts. All points of a network are exported alike and "
        "raced in one run, interleaved (ONNX Runtime, one thread, batch 1); *faster* is the dense network's time over the "
        "point's. *Right* is the artifact's, in ONNX Runtime (before tuning the network's, in torch), on test images, which "
        "decided nothing. Fine-tuning is "
        f"{first['epochs']} epochs of distillation from the dense network that a point was made from, the same for all; it "
        "and new batch norm statistics are kept where validation images do not object. *Asked* is the speed-up for this "
        "compressor, the factor of fewer multiply-adds for the others.",
    ]
    for row in rows:
        lines += ["", *_section(row)]
    lines += ["", "## The bars", "", *_bars(rows)]
    return "\n".join(lines) + "\n"


def _section(row: dict[str, Any]) -> list[str]:
    dense = next(each for each in row["points"] if each["method"] == "dense")
    lines = [
        f"## {row['name']}",
        "",
        f"{row['data']}, {row['train']:,} training images, {row['test']:,} test images: one image is "
        f"{100 / row['test']:.2f} points. Dense: {row['dense_ms']:.3g} ms.",
        "",
        f"![accuracy against time](images/compressors-{row['name']}.svg)",
        "",
    ]
    cells = [
        (
            METHODS[each["method"]],
            f"{each['strength']:g}",
            f"{1 / each['ratio']:.2f}",
            f"{1 / each['ci95'][1]:.2f}-{1 / each['ci95'][0]:.2f}",
            f"{dense['macs'] / each['macs']:.2f}",
            *(f"{_right(row, each, key):.2f}" for key in reversed(WRONG.values())),
            each["note"],
        )
        for each in row["points"]
    ]
    columns = ("method", "asked", "faster", "95 % interval", "fewer MACs", "right, not tuned, %", "right, tuned, %", "note")
    lines += [*table(columns, cells), "", *_verdict(row)]
    return lines + [f"* {text}" for text in row["failed"]]


def _right(row: dict[str, Any], point: Point, key: str) -> float:
    return 100 - 100 * len(misses(point, key)) / int(row["test"])


def _verdict(row: dict[str, Any]) -> list[str]:
    lines = []
    for state, key in WRONG.items():
        front = [each for each in row["points"] if each["method"] in OWN]
        found = [(each, above(each, front, key)) for each in row["points"] if each["method"] in RIVALS]
        for certainty in ("beyond chance", "by count"):
            named = [f"{METHODS[each['method']]} {each['strength']:g}" for each, said in found if said == certainty]
            lines.append(f"* {state}, rival points above our front {certainty}: {', '.join(named) or 'none'}.")
        ours, best = _at_bar(row, ("ours",), key), _at_bar(row, RIVALS, key)
        lines.append(f"* {state}, the fastest within {LOST:g} point of the better dense network: {_compared(ours, best)}.")
    return lines


def _at_bar(
    row: dict[str, Any], methods: Sequence[str], key: str, dense: Sequence[str] = ("dense", "dense N=1")
) -> Point | None:
    """The fastest point within `LOST` of the better of the ``dense`` networks: one floor for all."""
    least = min(len(misses(each, "wrong")) for each in row["points"] if each["method"] in dense)
    return fastest(row, methods, least + LOST / 100 * row["test"], key)


def _compared(ours: Point | None, best: Point | None) -> str:
    said = [
        f"{name} {1 / each['ratio']:.2f}x" if each else f"{name} nothing"
        for name, each in (("ours", ours), (METHODS[best["method"]] if best else "rivals", best))
    ]
    if ours and best:
        ratio, low, high = advantage(ours, best)
        said.append(f"ours over it {ratio:.2f}x ({low:.2f}-{high:.2f})")
    return ", ".join(said)


def _bars(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    where = []
    for row in rows:
        front = [each for each in row["points"] if each["method"] in OWN]
        for each in row["points"]:
            if each["method"] in RIVALS and above(each, front, "wrong") == "beyond chance":
                end = ", beyond the fast end of our front" if all(slower(own, each) for own in front) else ""
                where.append(f"{METHODS[each['method']]} {each['strength']:g} on {row['name']}{end}")
    missed = f"MISSED: {'; '.join(where)}" if where else "kept"
    lines.append(f"* No rival point above our front (fine-tuned, beyond chance): {missed}.")
    for row in rows:
        if row["name"] == BAR_NETWORK:
            ours, best = _at_bar(row, ("ours",), "wrong"), _at_bar(row, RIVALS, "wrong")
            kept = ours and (best is None or advantage(ours, best)[0] >= BAR)
            lines.append(
                f"* {BAR_NETWORK} at least {BAR:g}x faster than the best of them at {LOST:g} point lost: "
                f"{'kept' if kept else 'MISSED'} ({_compared(ours, best)})."
            )
            easier = (_at_bar(row, methods, "wrong", ("dense",)) for methods in (("ours",), RIVALS))
            lines.append(
                f"  At 1 point below the LoRITa-trained dense network instead of the better one: {_compared(*easier)}."
            )
    return lines


# ---------------------------------------------------------------------------------------------- the picture

WIDTH, HEIGHT = 760.0, 440.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 24.0, 96.0, 60.0
COLOURS = {
    "dense": "#444444",
    "dense-N1": "#999999",
    "ours": "#1d6fb8",
    "uniform": "#9467bd",
    "paper": "#c79a00",
    "magnitude": "#d1495b",
    "taylor": "#2a9d6f",
}


def picture(row: dict[str, Any]) -> str:
    """Right answers of fine-tuned artifacts over the time relative to dense, with its interval."""
    best = max(_right(row, each, "wrong") for each in row["points"] if each["method"].startswith("dense"))
    points = [each for each in row["points"] if _right(row, each, "wrong") >= best - SHOWN]
    x = svg.spread_scale([each["ratio"] for each in points], LEFT, WIDTH - RIGHT)
    y = svg.Scale(*svg.span([_right(row, each, "wrong") for each in points], 0.08), HEIGHT - BOTTOM, TOP)
    parts = [
        svg.element("style", _style()),
        svg.x_axis(x, TOP, HEIGHT - BOTTOM, "time of a call relative to dense, measured"),
        svg.y_axis(y, LEFT, WIDTH - RIGHT, f"right answers on {row['test']:,} test images, %"),
    ]
    for place, (method, title) in enumerate(METHODS.items()):
        mine = sorted((each for each in points if each["method"] == method), key=lambda each: float(each["ratio"]))
        drawn = [svg.polyline([(x(each["ratio"]), y(_right(row, each, "wrong"))) for each in mine], "way")]
        for each in mine:
            at = y(_right(row, each, "wrong"))
            said = f"{title}, asked {each['strength']:g}: {1 / each['ratio']:.2f}x, {_right(row, each, 'wrong'):.2f} %"
            drawn += [
                svg.line(x(each["ci95"][0]), at, x(each["ci95"][1]), at, "way"),
                svg.mark(SHAPES[method], x(each["ratio"]), at, said),
            ]
        legend = LEFT + 240 * (place % 3), 18 + 20 * (place // 3)
        drawn += [svg.mark(SHAPES[method], legend[0], legend[1] - 4), svg.label(legend[0] + 12, legend[1], title)]
        parts.append(svg.element("g", *drawn, class_=method.replace(" ", "-").replace("=", "")))
    title = f"{row['name']}: accuracy against time, after {row['epochs']} epochs of fine-tuning"
    below = len(row["points"]) - len(points)
    described = f"{below} points more than {SHOWN:g} points below dense are not shown" if below else "all points"
    if below:
        parts.append(svg.label(WIDTH - RIGHT, TOP - 12, described, "end"))
    found = svg.chart(WIDTH, HEIGHT, title, described, *parts)
    return found.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _style() -> str:
    fixed = "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#333}.grid{stroke:#ddd}.axis{stroke:#666}"
    fixed += ".axis-title{font-weight:600}.mark{stroke-width:1.5}.way{fill:none;stroke-width:1.5}"
    own = [f".{name} .mark,.{name} .way{{stroke:{colour}}}.{name} .mark{{fill:{colour}}}" for name, colour in COLOURS.items()]
    return fixed + "".join(own) + ".mark.lossy,.mark.below{fill:none!important;stroke-width:2}"
