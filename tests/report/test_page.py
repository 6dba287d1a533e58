"""report.html says what report.md says, on one page that is whole, safe and draws every figure once for each width."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from lorita_deploy.records import LedgerStep, LeftAlone
from lorita_deploy.report import facts, markup, networks, proofs, spectra, waterfall
from lorita_deploy.report.page import render
from lorita_deploy.report.svg import typeset
from lorita_deploy.report.times import plan_unit

VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what is there."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words, self.addresses = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        self.addresses += [value for key, value in attributes if key in ("href", "src", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, text):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(text)

    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


def pictures(text):
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg[ >].*?</svg>", text, flags=re.DOTALL)]


@pytest.fixture(params=["report", "large", "estimated", "int8", "bare"])
def any_report(request):
    if request.param == "bare":  # nothing changed, nothing judged, no spectra
        report = request.getfixturevalue("report")
        choices = tuple(each.model_copy(update={"form": "dense", "rank": None}) for each in report.plan.choices)
        plan = report.plan.model_copy(update={"choices": choices, "probes": (), "predicted_us": report.plan.dense_us})
        return report.model_copy(update={"plan": plan, "shipped": "dense", "collapsed": None, "ledger": (), "receipt": None})
    return request.getfixturevalue(request.param)


def test_every_report_is_well_formed_and_whole(any_report):
    text = render(any_report)
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses), "nothing is fetched from anywhere"
    assert not re.search(r"@import|url\(|@font-face", text)
    named = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(named) == len(set(named))
    assert {address[1:] for address in page.addresses} == set(named)
    for drawn in pictures(text):
        if drawn.get("aria-hidden") != "true":
            assert drawn.get("role") == "img"
            assert drawn.find("title").text
            assert drawn.find("desc").text
        for each in drawn.iter():
            for key in ("x", "y", "x1", "y1", "x2", "y2", "width", "height"):
                assert not re.search("nan|inf", each.get(key, ""))


def test_what_it_says_is_what_the_tables_say(any_report):
    text = Page(render(any_report)).text()
    tables = [facts.summary(any_report), facts.environment(any_report.host), facts.hashes(any_report)]
    tables += [networks.layers(any_report.plan, any_report.collapsed), proofs.fidelity(any_report.fidelity)]
    tables += [proofs.latency(any_report.receipt)] if any_report.receipt else []
    tables += proofs.on_the_board(any_report.receipt) if any_report.receipt else []
    tables += [proofs.precisions(any_report.precision)] if any_report.precision else []
    tables += [proofs.ledger(any_report)] if any_report.ledger else []
    for cell in {cell for table in tables for row in table.rows for cell in row}:
        shown = typeset(" ".join(cell.split()))
        assert shown in text or shown.replace(".", ". ") in text, cell
    assert typeset(any_report.headline) in text


def test_no_estimate_is_shown_as_a_time(estimated):
    """The made-up estimates are 77.7, 33.3, 380, 137, 5 us: none may stand there with a unit of time."""
    text = render(estimated)
    shown = Page(text).text()
    for value in ("77.7", "33.3", "0.0777", "380", "137"):
        assert not re.search(rf"(?<![\d.]){re.escape(value)}(?!\d) ?(us|µs|ms)?\b", shown), value
    assert plan_unit(estimated).name == "%"
    assert shown.index("Estimated") < shown.index("Dense and shipped"), "the word stands at the top"
    assert "a ratio, not a time" in shown
    tile = re.search(r'<div class="tile estimated">.*?</div>', text).group(0)
    assert "≈ 2.33x" in tile
    assert "stroke-dasharray" in tile, "marked by shape as well as by colour"


def test_precisions_and_energy_are_there_where_they_were_tried_and_measured(report, int8):
    plain, shown = Page(render(report)).text(), Page(render(int8)).text()
    for said in ("Precision", "energy a call", "mJ"):
        assert said not in plain, said
    assert "What ships is in int8." in shown
    assert "9.20 mJ → 4.10 mJ, by the board's own sensors" in shown
    assert "energy by the board's own sensors (INA3221 VDD_IN), not by a wall meter" in shown
    raced = int8.model_copy(update={"shipped_precision": "fp32"})
    assert "in fp32. In the race above, int8 was not faster than both networks in fp32." in Page(render(raced)).text()


def test_provenance_differs_in_word_and_shape():
    drawn = {kind: markup.badge(kind) for kind in ("measured", "tabled", "estimated")}
    assert len({re.search(r"</svg>(\w+)", badge).group(1) for badge in drawn.values()}) == 3
    assert len({re.search(r"<svg.*</svg>", badge).group(0) for badge in drawn.values()}) == 3


HOSTILE = '<img src=x onerror=alert(1)>"&'


def test_nothing_from_a_file_becomes_markup(report, large):
    def poisoned(value):
        if isinstance(value, str):
            return HOSTILE
        if isinstance(value, dict):
            return {key: poisoned(each) for key, each in value.items()}
        return value

    layers = tuple(each.model_copy(update={"name": f"{HOSTILE}{each.name}"}) for each in large.collapsed.layers)
    choices = tuple(each.model_copy(update={"layer": f"{HOSTILE}{each.layer}"}) for each in large.plan.choices)
    notes = ("</script><script>alert(2)</script>", HOSTILE)
    evil = large.model_copy(
        update={
            "model": HOSTILE,
            "headline": HOSTILE,
            "notes": notes,
            "missed": notes,
            "host": large.host.model_copy(update={"machine": HOSTILE, "versions": {HOSTILE: HOSTILE}}),
            "left_alone": (LeftAlone(layer=HOSTILE, reason=HOSTILE),),
            "collapsed": large.collapsed.model_copy(update={"layers": layers}),
            "plan": large.plan.model_copy(update={"choices": choices, "notes": notes, "target": HOSTILE}),
            "target": HOSTILE,
            "receipt": report.receipt.model_copy(update={"warnings": notes}),
        }
    )
    text = render(evil)
    page = Page(text)
    assert not page.all("img")
    assert len(page.all("script")) == 1
    assert not [attributes for _, attributes in page.seen if any(key.startswith("on") for key in attributes)]
    assert "<img" not in text


def test_private_paths_stay_out(report):
    path = "/" + "home/jane/nets/w.safetensors"
    text = render(report.model_copy(update={"notes": (f"weights from {path}",)}))
    assert "jane" not in text
    assert "weights from w.safetensors" in text


def test_a_large_network_stays_readable(large):
    text = render(large)
    wide = [
        drawn
        for drawn in pictures(text)
        if drawn.find("title") is not None and drawn.find("title").text == "Where the time went"
    ]
    assert len(wide) == 3, "a desk, a tablet, a phone"
    for drawn in wide:
        rows = [each.text for each in drawn.iter("text") if each.get("class") == "row"]
        assert len(rows) == 1 + waterfall.MOST + 1 + 3, "dense, the largest, the rest as one, predicted, unforeseen, measured"
        assert len(set(rows)) == len(rows)
        assert "76 more layers" in rows
    assert len(re.findall(r'<li><svg viewBox="0 0', text)) == len(large.plan.choices), "every spectrum is there"
    assert "96 more layers" in Page(text).text()
    assert len(text) < 1_500_000


def test_the_waterfall_adds_up(report, large, estimated):
    for each in (report, large, estimated):
        found = waterfall.steps(each)
        dense, predicted = found[0], next(step for step in found if step.kind == "predicted")
        saved = sum(step.us for step in found if step.kind == "change")
        assert dense.us + saved == pytest.approx(predicted.us)
        assert dense.us == each.plan.dense_us
        if each is estimated:
            assert found[-1] is predicted
        else:
            beyond = next(step for step in found if step.kind == "unforeseen")
            assert predicted.us + beyond.us == pytest.approx(found[-1].us)
            assert found[-1].us == pytest.approx(each.plan.dense_us * each.receipt.ratios[0].ratio)


def test_spectra_are_cut_where_the_plan_cuts(report):
    conv, head = spectra.spectra(report)
    assert (conv.cut, head.cut) == (8, None)
    assert spectra.floor([conv, head]) == 1e-6
    drawn = ElementTree.fromstring(spectra.picture(conv, "conv", 1e-6))
    (cut,) = [each for each in drawn.iter("line") if each.get("class") == "cut"]
    left, right = spectra.LEFT, spectra.WIDTH - spectra.RIGHT
    assert float(cut.get("x1")) == pytest.approx(left + (right - left) * 8 / 64, abs=0.01)
    dense = ElementTree.fromstring(spectra.picture(head, "head", 1e-6))
    assert not [each for each in dense.iter("line") if each.get("class") == "cut"]


def test_the_ledger_names_the_first_step_over_its_budget(report):
    assert proofs.ledger(report).note == "no step is over its budget; not part of this build: recover, precision"
    broken = tuple(
        step.model_copy(update={"error": 0.02}) if step.step in ("export", "simplify") else step for step in report.ledger
    )
    found = proofs.ledger(report.model_copy(update={"ledger": broken}))
    assert found.note.startswith("the first step over its budget: export; ")
    assert [row[-1] for row in found.rows] == ["within", "within", "OVER BUDGET", "OVER BUDGET", ""]
    text = render(report.model_copy(update={"ledger": broken}))
    assert text.count('class="mark over"') == 6, "two steps, at three widths, in a shape of their own"


def test_the_ledger_says_which_steps_were_not_part_of_the_build(report):
    assert [step.step for step in report.ledger] == ["collapse", "truncation", "export", "simplify", "engine"]
    assert "not part of this build: recover, precision" in Page(render(report)).text()
    whole = [LedgerStep(step=name, against="", unit="points", error=0, budget=1) for name in proofs.STEPS]
    assert proofs.ledger(report.model_copy(update={"ledger": tuple(whole)})).note == "no step is over its budget"


def test_a_gain_in_accuracy_is_no_error():
    step = LedgerStep(step="recover", against="a with b", unit="points", error=-0.4, budget=0.0)
    assert not step.over
    assert LedgerStep(step="recover", against="a with b", unit="points", error=0.4, budget=0.0).over


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.49 M", 1.49e6),
        ("2.88 k", 2880),
        ("5.3e-10", 5.3e-10),
        ("1,180", 1180),
        ("27/64", 27),
        ("0", 0),
        ("-3.2 %", -3.2),
        ("12.5 %", 12.5),
        ("full", 1e300),
        ("n/a (n=12)", None),
        ("", None),
    ],
)
def test_numbers_sort_as_numbers(cell, value):
    found = markup.sort_value(cell)
    assert found is None if value is None else float(found) == pytest.approx(value)
