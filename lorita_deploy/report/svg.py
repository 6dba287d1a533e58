"""Drawing by hand: elements of SVG and HTML as text, scales with round ticks, axes. Everything that is put in is escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from . import words

TEXT = 12
"""Font size in charts, in the units of their width (a unit is a pixel where the chart has its natural width)."""
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
GLYPH = 0.6
"""Mean width of a character over the font size, on the safe side for sans-serif faces."""

_INTERVAL = re.compile(r"(^|interval )([\d.,]+)-([\d.,]+)(?=$|[);,])")
_PATH = re.compile(r"(?<![\w/.:])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+-]+){2,}")


def escape(said: object) -> str:
    """Text from records, safe inside elements. Of a machine's absolute paths only the last part is left."""
    return _safe(typeset(str(said)))


def _safe(said: str) -> str:
    shown = _PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], said)
    return html.escape("".join(sign for sign in shown if sign.isprintable() or sign in "\n\t"))


def typeset(said: str) -> str:
    """Text of terminals as it is set on a page: arrows and, between the ends of an interval, dashes."""
    return _INTERVAL.sub(r"\1\2–\3", said.replace("->", "→"))


def element(name: str, *children: str, **attributes: object) -> str:
    """``children`` are markup already. Attribute ``class_`` is class, ``text_anchor`` text-anchor; None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items() if value is not None
    )
    return f"<{name}{given}>{''.join(children)}</{name}>"


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else _safe(str(value))


def label(x: float, y: float, said: str, anchor: str = "start", class_: str | None = None) -> str:
    return element("text", escape(said), x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def rectangle(x: float, y: float, width: float, height: float, class_: str, tip: str = "") -> str:
    hint = element("title", escape(tip)) if tip else ""
    return element(
        "rect", hint, x=float(x), y=float(y), width=float(max(width, 0.0)), height=float(height), rx=1.5, class_=class_
    )


def polyline(points: Sequence[tuple[float, float]], class_: str) -> str:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def mark(shape: str, x: float, y: float, tip: str = "") -> str:
    """A point whose meaning is in its shape as well as in its colour; classes of the same names give the colours."""
    r = 5.0
    paths = {
        "dense": f"M{-r},{-r}H{r}V{r}H{-r}Z",
        "kept": f"M{-r},0A{r},{r} 0 1 0 {r},0A{r},{r} 0 1 0 {-r},0Z",
        "lossy": "M-4,-4L4,4M-4,4L4,-4",
        "chosen": "M0,-8L8,0L0,8L-8,0Z",
        "predicted": "M0,-7L7,0L0,7L-7,0Z",
        "over": "M0,-7L7,5H-7Z",
        "below": "M-4,-9L4,-1M-4,-1L4,-9M0,0V9M-4,5L0,9L4,5",
    }
    hint = element("title", escape(tip)) if tip else ""
    return element("path", hint, d=paths[shape], transform=f"translate({x:.1f} {y:.1f})", class_=f"mark {shape}")


def chart(width: float, height: float, title: str, description: str, *children: str) -> str:
    """An ``svg`` that screen readers read as one picture with a title and a description."""
    heads = element("title", escape(title)), element("desc", escape(description))
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *heads, *children, viewBox=box, width=width, height=height, role="img", aria_label=title)


def text_width(said: str, size: float = TEXT) -> float:
    return GLYPH * size * len(said)


def shortened(said: str, room: float, size: float = TEXT) -> str:
    """``said`` with its middle left out where it would be wider than ``room``."""
    most = max(3, int(room / (GLYPH * size)))
    if len(said) <= most:
        return said
    tail = (most - 1) * 2 // 3
    return f"{said[: most - 1 - tail]}…{said[len(said) - tail :]}"


def distinct(names: Sequence[str], room: float, size: float = TEXT) -> dict[str, str]:
    """What to write for each of ``names``: where not all of them fit into ``room``, without the beginning and the end that
    they have in common, so that what tells them apart is left."""
    if len(names) < 2 or max(text_width(name, size) for name in names) <= room:
        return {name: name for name in names}
    before, after = _common(names), _common([name[::-1] for name in names])[::-1]
    head = max(before.rfind(sign) for sign in "._") + 1
    tail = min((place for sign in "._" if (place := after.find(sign)) >= 0), default=len(after))
    end = len(after) - tail
    begun = {name: f"…{name[head:]}" if head else name for name in names}
    if max(text_width(said, size) for said in begun.values()) <= room or not end:
        return begun
    return {name: f"{said[:-end]}…" for name, said in begun.items()}


def _common(names: Sequence[str]) -> str:
    """The letters that all begin with."""
    same = takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))
    return "".join(signs[0] for signs in same)


# ---------------------------------------------------------------------------------------------- scales


@dataclass(frozen=True)
class Scale:
    """From values to places: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(each) for each in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """At most ``most`` round values (1, 2 or 5 times a power of ten) between the ends."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power * size for size in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [count * step for count in range(first, last + 1)]
    return [low, high]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for sizes in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [size * 10.0**decade for decade in decades for size in sizes]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def span(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """Least and largest with some room on both sides; never of length zero."""
    low, high = min(values), max(values)
    room = pad * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def log_span(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    low, high = span([math.log(value) for value in values], pad)
    return math.exp(low), math.exp(high)


def spread_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Logarithmic where the values differ by more than a factor of three: ratios of times matter, not differences."""
    if min(values) > 0 and max(values) / min(values) > 3:
        return Scale(*log_span(values), start, end, log=True)
    return Scale(*span(values, 0.1), start, end)


def tick_text(value: float) -> str:
    """As few digits as a round tick needs: 0.5, 20, 10⁻⁶."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        digits, _, power = f"{value:.0e}".partition("e")
        raised = f"10{str(int(power)).translate(RAISED)}"
        return raised if digits == "1" else f"{digits}·{raised}"
    return f"{round(value, 10):g}"


def x_axis(scale: Scale, top: float, bottom: float, title: str, *, most: int = 7) -> str:
    """Grid lines from ``top`` to ``bottom``, tick labels below, the title of the axis below them."""
    parts = []
    last = -math.inf
    for value in scale.ticks(most):
        x, said = scale(value), tick_text(value)
        parts.append(line(x, top, x, bottom, "grid"))
        if x - last >= text_width(said) + 6:
            parts.append(label(x, bottom + 16, said, "middle", "tick"))
            last = x
    parts.append(line(scale.start, bottom, scale.end, bottom, "axis"))
    # Between the ends of the axis, in two lines where one is too long for it.
    head, _, tail = title.rpartition(", ") if text_width(title) > scale.end - scale.start else ("", "", title)
    for place, said in enumerate(filter(None, (head, tail))):
        parts.append(label((scale.start + scale.end) / 2, bottom + 34 + 15 * place, said, "middle", "axis-title"))
    return "".join(parts)


def y_axis(scale: Scale, left: float, right: float, title: str, *, most: int = 6) -> str:
    """Grid lines, tick labels to the left, the title above the axis, so that it reads without turning one's head."""
    parts = []
    for value in scale.ticks(most):
        y = scale(value)
        parts += [line(left, y, right, y, "grid"), label(left - 7, y + 4, tick_text(value), "end", "tick")]
    parts.append(label(2, min(scale.start, scale.end) - 12, title, "start", "axis-title"))
    return "".join(parts)


def number(value: float) -> str:
    return words.number(value).replace("-", "−")
