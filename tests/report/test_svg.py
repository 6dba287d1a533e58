"""Drawing: scales, ticks, names that fit, and nothing that a file says becomes markup or tells where it lay."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from lorita_deploy.report import svg


def test_what_files_say_is_no_markup():
    assert svg.escape("""<script>alert("x")</script>&'""") == "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#x27;"
    assert svg.escape("a\x00b\x1b[31mc\u202ed") == "ab[31mcd"
    assert ElementTree.fromstring(svg.label(1, 2, "<&>\"'")).text == "<&>\"'"
    assert ElementTree.fromstring(svg.element("g", aria_label='"><b>', class_="c", x=None)).attrib == {
        "aria-label": '"><b>',
        "class": "c",
    }


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("cannot read " + "/" + "home/jane/secret/w.safetensors: no such file", "cannot read w.safetensors: no such file"),
        ("in C:\\Users\\jane\\w.pt", "in w.pt"),
        ("~/data/digits", "digits"),
        ("(" + "/" + "srv/a_b/c-d.onnx)", "(c-d.onnx)"),
        ("conv 3x3/2 64->128 @16x16", "conv 3x3/2 64->128 @16x16"),
        ("64/64, 1/2", "64/64, 1/2"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("build/mine/model.onnx", "build/mine/model.onnx"),
    ],
)
def test_absolute_paths_keep_their_last_part_only(said, shown):
    assert svg.escape(said) == svg.escape(shown)
    assert "jane" not in svg.escape(said)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("linear 784->512, now 784->64", "linear 784→512, now 784→64"),
        ("0.00918-0.0151", "0.00918–0.0151"),
        ("6.65x faster (95 % interval 6.25-7.68), measured", "6.65x faster (95 % interval 6.25–7.68), measured"),
        ("1.0-1.2, and on 2026-11-27T06:54:20Z", "1.0–1.2, and on 2026-11-27T06:54:20Z"),
        ("2026-11-27", "2026-11-27"),
        ("Linux 6.18.44-2-amd64", "Linux 6.18.44-2-amd64"),
        ("narrow-pair", "narrow-pair"),
        ("5.3e-07", "5.3e-07"),
    ],
)
def test_text_is_set_as_print_is(said, shown):
    assert svg.typeset(said) == shown
    assert ElementTree.fromstring(svg.label(0, 0, said)).text == shown
    assert svg.polyline([(12.0, -3.0)], "c") == '<polyline points="12.0,-3.0" class="c"></polyline>', "places are no prose"


def test_small_ticks_are_powers_of_ten():
    assert [svg.tick_text(value) for value in (0, 0.5, 20, 0.001, 1e-4, 2e-6, 1e6)] == [
        *("0", "0.5", "20", "0.001", "10⁻⁴", "2·10⁻⁶", "10⁶"),
    ]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.7, 1.4), (1, 10), (0.013, 0.017), (3e-6, 40), (98.2, 98.9), (1e3, 9e5)])
@pytest.mark.parametrize("most", [2, 5, 9])
def test_ticks_are_few_round_and_inside(low, high, most, log):
    found = svg.Scale(low, high, 0, 100, log).ticks(most)
    assert len(found) <= most
    assert found == sorted(set(found))
    for value in found:
        assert low * (1 - 1e-6) <= value <= high * (1 + 1e-6)
        digits = value / 10.0 ** math.floor(math.log10(value) + 1e-9)
        assert digits == pytest.approx(round(digits, 3), abs=1e-6), "at most four digits"


def test_scales_end_where_they_should():
    for scale in (svg.Scale(2, 8, 10, 90), svg.Scale(2, 8, 10, 90, log=True)):
        assert (scale(2), scale(8)) == pytest.approx((10, 90))
    assert svg.Scale(1, 100, 0, 2, log=True)(10) == pytest.approx(1)
    assert svg.spread_scale([1, 2], 0, 1).log is False
    assert svg.spread_scale([1, 20], 0, 1).log is True
    same = svg.spread_scale([5, 5], 0, 1)
    assert same.low < 5 < same.high
    assert svg.span([0.0, 0.0]) == (-1.0, 1.0)


def test_names_keep_what_tells_them_apart():
    names = [f"encoder.layers.{place}.attention.out_proj" for place in range(12)]
    assert svg.distinct(names, 1000) == {name: name for name in names}
    some = svg.distinct(names, 200)
    assert some[names[3]] == "…3.attention.out_proj"
    few = svg.distinct(names, 90)
    assert few[names[11]] == "…11…"
    for room in (60, 90, 200, 300, 1000):
        assert len(set(svg.distinct(names, room).values())) == len(names)
    assert svg.distinct(["only"], 1) == {"only": "only"}
    assert svg.shortened("features.conv.0", 60) == "fea…nv.0"
    assert svg.text_width(svg.shortened("x" * 500, 60)) <= 60


def test_axis_labels_do_not_overlap():
    for most in (3, 9, 30):
        drawn = ElementTree.fromstring(f"<g>{svg.x_axis(svg.Scale(1, 1000, 0, 300, log=True), 0, 10, 't', most=most)}</g>")
        ticks = [each for each in drawn.iter("text") if each.get("class") == "tick"]
        places = [(float(each.get("x")), svg.text_width(each.text)) for each in ticks]
        for (x, width), (after, next_width) in pairwise(places):
            assert x + width / 2 <= after - next_width / 2
