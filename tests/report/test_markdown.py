"""report.md says where its times come from, and never more than is known."""

import re

from lorita_deploy.report.markdown import render


def tables(text):
    """Lists of rows of cells, one list for every table."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text + "\n", flags=re.MULTILINE):
        found.append([re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()])
    return found


def test_the_first_line_says_where_times_come_from(report, estimated):
    assert render(report).splitlines()[0].startswith("Times on cpu are MEASURED")
    assert render(estimated).splitlines()[0].startswith("Times on jetson-orin-nano are ESTIMATED")


def test_everything_is_in_it(report):
    text = render(report)
    for piece in (
        "# tiny for cpu",
        "**2.00x faster**",
        "352 of 360 right",
        "350 of 360 right",
        "## Latency on `cpu`",
        "## Layers",
        "depth\\|wise",
        "## Artifact against torch",
        "torch | 2.11",
        "d" * 64,
        "digits \\| 1,797 images",
        "* a note of the plan\n* a note of the build",
    ):
        assert piece in text, piece


def test_precisions_and_energy_are_told(int8):
    text = render(int8)
    assert "## Precision (ships in int8)" in text
    assert "the fastest that is right often enough" in text
    assert "## On the board" in text


def test_every_table_is_well_formed(report, estimated, int8):
    for text in (render(report), render(estimated), render(int8)):
        found = tables(text)
        assert len(found) >= 9
        for rows in found:
            assert len({len(row) for row in rows}) == 1


def test_no_estimated_time_is_shown(estimated):
    """The made-up estimates 77.7, 33.3, 380, 137 and 5 us must not appear, in any unit; what was measured here must."""
    text = re.sub(r"\b[0-9a-f]{64}\b", "", render(estimated))  # a digest may hold any digits
    for value in ("77.7", "33.3", "0.0777", "380", "137"):
        assert value not in text, value
    assert "0.432" in text
    assert "0.211" in text
    assert "2.33x" in text


def test_missed_demands_are_told(report):
    assert "**Missed:** asked for 3x" in render(report.model_copy(update={"missed": ("asked for 3x",)}))


def test_names_that_others_chose_are_no_markup(report):
    name = "a<script>alert(1)</script>|b\nc"
    (first, *rest) = report.plan.choices
    plan = report.plan.model_copy(update={"choices": (first.model_copy(update={"layer": name}), *rest), "notes": (name,)})
    layers = tuple(layer.model_copy(update={"name": name}) for layer in report.collapsed.layers[:1])
    collapsed = report.collapsed.model_copy(update={"layers": (*layers, *report.collapsed.layers[1:])})
    text = render(report.model_copy(update={"plan": plan, "collapsed": collapsed}))
    assert "<script>" not in text
    assert "| a&lt;script>alert(1)&lt;/script>\\|b c |" in text
    assert "* a&lt;script>alert(1)&lt;/script>|b c\n" in text
    for rows in tables(text):
        assert len({len(row) for row in rows}) == 1
