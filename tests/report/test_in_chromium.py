"""report.html in a real browser: silent, alone, sortable, readable in the dark, on a phone and on paper."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Browser

from lorita_deploy.report import facts
from lorita_deploy.report.page import render


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture
def pages(report, large, estimated, int8, tmp_path):
    """A page for each kind of report."""
    found = {"small": report, "large": large, "estimated": estimated, "int8": int8}
    for name, each in found.items():
        (tmp_path / f"{name}.html").write_text(render(each), encoding="utf-8")
    return {name: tmp_path / f"{name}.html" for name in found}


@pytest.mark.parametrize("name", ["small", "large", "estimated", "int8"])
def test_it_is_silent_and_asks_for_nothing(browser, pages, name):
    browser.open(pages[name])
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]


def test_so_is_that_of_a_real_build(browser, readme_build):
    page = readme_build[0] / "report.html"
    for width in (390, 1200):
        browser.open(page, width=width)
        assert browser.complaints() == []
        assert browser.requests() == [page.as_uri()]
        assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('svg[role=img]').length") > 8


def test_its_own_policy_lets_nothing_in(browser, pages):
    """The console and the list of requests do tell: what is put into the page is refused."""
    browser.open(pages["small"])
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=https://example.invalid/x.png onerror=window.hit=1>')")
    browser.run("document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 2'}))")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.run("window.hit") is None
    assert browser.complaints()
    assert len(browser.requests()) == 2
    (refused,) = [event["params"] for event in browser.events if event["method"] == "Network.loadingFailed"]
    assert refused["blockedReason"] == "csp"


def column(browser, place):
    rows = "document.querySelectorAll('#layers .sortable tbody tr')"
    return browser.run(f"Array.from({rows}, row => row.cells[{place}].textContent)")


def click(browser, name):
    """Where a person would: in the middle of the button."""
    browser.run(
        f"window.button = Array.from(document.querySelectorAll('#layers th button')).find(b => b.textContent === '{name}');"
        "button.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})"
    )
    x, y = browser.run("(box => [box.x + box.width / 2, box.y + box.height / 2])(button.getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    return browser.run("button.closest('th').getAttribute('aria-sort')")


def test_tables_sort_by_a_click(browser, pages, large):
    browser.open(pages["large"])
    heads = browser.run("Array.from(document.querySelectorAll('#layers .sortable thead th'), th => th.textContent)")
    at = heads.index("µs before")
    before = column(browser, at)
    assert before != sorted(before, key=float)
    assert click(browser, "µs before") == "ascending"
    assert [float(cell) for cell in column(browser, at)] == sorted(float(cell) for cell in before)
    assert click(browser, "µs before") == "descending"
    assert [float(cell) for cell in column(browser, at)] == sorted((float(cell) for cell in before), reverse=True)
    assert click(browser, "layer") == "ascending"
    names = [choice.layer for choice in large.plan.choices]
    assert column(browser, 0) == names, "numbers in names count as numbers: 2 before 10"
    assert browser.run("document.querySelectorAll('#layers [aria-sort]').length") == 1
    click(browser, "rank")
    ranks = column(browser, heads.index("rank"))
    assert ranks == ["8"] * ranks.count("8") + ["full"] * ranks.count("full")


def test_the_keyboard_sorts_too(browser, pages):
    browser.open(pages["small"])
    browser.run("document.querySelector('#layers th button').focus()")
    assert browser.run("document.activeElement.tagName") == "BUTTON"
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r" if kind == "keyDown" else ""}
        browser.call("Input.dispatchKeyEvent", type=kind, **key)
    assert browser.run("document.querySelector('#layers th').getAttribute('aria-sort')") == "ascending"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 640, 700, 1000, 1200])
@pytest.mark.parametrize("name", ["large", "estimated", "int8"])
def test_nothing_sticks_out(browser, pages, name, width, scheme):
    browser.open(pages[name], width=width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.run("document.documentElement.scrollWidth") <= width
    # Of everything that does not stand in a box that scrolls by itself.
    outside = browser.run(
        "Array.from(document.querySelectorAll('main *, header *')).filter(each => !each.closest('.scroll'))"
        f".filter(each => each.getBoundingClientRect().right > {width} + 0.5).map(each => each.outerHTML.slice(0, 80))"
    )
    assert outside == []


def scrolled(browser, width, page):
    """The tables that go on beyond their box."""
    browser.open(page, width=width)
    return browser.run(
        "Array.from(document.querySelectorAll('.scroll')).filter(each => each.getClientRects().length"
        " && each.scrollWidth > each.clientWidth + 1).map(each => each.getAttribute('aria-label'))"
    )


@pytest.mark.parametrize("name", ["small", "estimated", "int8"])
def test_a_desk_shows_whole_tables(browser, pages, name):
    assert scrolled(browser, 1200, pages[name]) == []


def test_a_phone_shows_what_matters_most_whole(browser, pages, report):
    found = scrolled(browser, 390, pages["small"])
    assert facts.summary(report).title not in found
    assert {"Stages", "Environment", "Hashes (sha256)", "Interleaved race"}.isdisjoint(found)


@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (700, "middle"), (1200, "wide")])
def test_each_width_has_its_own_pictures(browser, pages, width, shown):
    """Letters in them have their size, within a fifth or so: nothing is drawn for a desk and shrunk for a phone."""
    browser.open(pages["large"], width=width)
    drawn = browser.run(
        "Array.from(document.querySelectorAll('figure > div')).filter(each => each.getClientRects().length)"
        ".map(each => [each.className, each.firstChild.getBoundingClientRect().width / each.firstChild.viewBox.baseVal.width])"
    )
    assert {name for name, _ in drawn} == {shown}
    assert all(0.8 <= scale <= 1.25 for _, scale in drawn), drawn


@pytest.mark.parametrize("width", [390, 700, 1200])
@pytest.mark.parametrize("name", ["small", "large", "estimated"])
def test_letters_in_pictures_stay_inside_and_apart(browser, pages, name, width):
    browser.open(pages[name], width=width)
    found = browser.run(
        """(() => {
          const wrong = [];
          for (const svg of document.querySelectorAll('svg[role=img]')) {
            if (!svg.getClientRects().length) continue;
            const frame = svg.getBoundingClientRect(), texts = Array.from(svg.querySelectorAll('text'));
            const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
            boxes.forEach(([said, a], place) => {
              const out = a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1;
              if (out) wrong.push([said, 'outside']);
              for (const [other, b] of boxes.slice(place + 1)) {
                const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (wide > 1 && high > 3) wrong.push([said, other]);
              }
            });
          }
          return wrong;
        })()"""
    )
    assert found == []


CONTRAST = """(() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = each => {
    for (; each; each = each.parentElement) {
      const found = parse(getComputedStyle(each).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const wrong = [];
  for (const each of document.querySelectorAll('p, h1, h2, th, td, a, summary, li, span, caption, svg text')) {
    if (!each.textContent.trim() || !each.getClientRects().length) continue;
    const style = getComputedStyle(each);
    const [a, b] = [light(parse(each.closest('svg') ? style.fill : style.color)), light(behind(each))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) wrong.push([each.textContent.slice(0, 30), ratio]);
  }
  return wrong;
})()"""


def test_letters_stand_out_by_day_and_by_night(browser, pages):
    paper = {}
    for scheme in ("light", "dark"):
        browser.open(pages["estimated"], scheme=scheme)
        paper[scheme] = browser.run("getComputedStyle(document.body).backgroundColor")
        assert browser.run(CONTRAST) == [], scheme
    assert paper["light"] != paper["dark"]


def test_it_prints_whole(browser, pages, tmp_path):
    browser.open(pages["large"])
    browser.printed(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
