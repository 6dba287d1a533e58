"""Mutated files: edits of bytes and of JSON, and properties that are tried a few hundred times, or slowly 10,000 times."""

import copy
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

FEW, MANY = 200, 10_000
SLOWEST_S = 5
"""One file of some kilobytes; a reader that takes longer than this hangs."""


def tiers(*strategies):
    """Run a property with few examples, and as a slow test with many (the same each time)."""

    def both(check):
        def run(count):
            quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
            given_settings = settings(
                max_examples=count, deadline=SLOWEST_S * 1000, derandomize=True, database=None, suppress_health_check=quiet
            )
            given_settings(given(*strategies)(check))()

        @pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
        def test(count, tmp_path):
            PLACE[:] = [tmp_path]
            run(count)

        test.__name__ = check.__name__
        test.__doc__ = check.__doc__
        return test

    return both


PLACE: list[Path] = []
"""Where the mutated files are written; hypothesis' examples share it."""


def written(name, content):
    path = PLACE[0] / name
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------- bytes

positions = st.integers(0, 2**20)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("overwrite"), positions, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("delete"), positions, st.integers(1, 200)),
        st.tuples(st.just("repeat"), positions, st.integers(1, 200)),
        st.tuples(st.just("cut"), positions, st.none()),
        st.tuples(
            st.just("number"), positions, st.sampled_from([0, 1, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
        ),
    ),
    max_size=6,
)


def mutated(content, changes):
    for kind, position, what in changes:
        at = position % (len(content) + 1)
        if kind == "overwrite":
            content = content[:at] + what + content[at + len(what) :]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + what :]
        elif kind == "repeat":
            content = content[:at] + content[at : at + what] * 2 + content[at + what :]
        elif kind == "cut":
            content = content[:at]
        else:
            packed = struct.pack("<Q", what)
            content = content[:at] + packed + content[at + 8 :]
    return content


def clear(error, path="", codes=(2,)):
    """An error in three parts, which names the file."""
    assert error.what
    assert error.fix
    assert error.exit_code in codes
    assert str(path) in str(error)


# ---------------------------------------------------------------------------------------------- JSON

odd = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**400, -0.5, 1e-320, 1e308, float("inf"), float("nan")]),
    st.sampled_from(["", " ", "text", "../../up", "/etc/passwd", "a\0b", "[/bold]", "<b>&", "\ud800", "é" * 300, "%s{}"]),
    st.builds(list),
    st.builds(dict),
    st.builds(lambda: [[[]]]),
)
rewrites = st.lists(
    st.tuples(
        st.sampled_from(["replace", "replace", "replace", "drop", "add", "again", "negate", "swap"]),
        st.lists(st.integers(0, 200), min_size=1, max_size=6),
        odd,
    ),
    max_size=5,
)
"""What to do, where (which entry of each level on the way down), and with what."""


def rewritten(body, changes):
    """A copy of the JSON object ``body`` with some entries, at any depth, changed."""
    body = copy.deepcopy(body)
    for kind, way, what in changes:
        place = body
        for step in way[:-1]:
            inner = [
                each
                for each in (place.values() if isinstance(place, dict) else place)
                if each and isinstance(each, list | dict)
            ]
            if not inner:
                break
            place = inner[step % len(inner)]
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[way[-1] % len(keys)] if keys else None
        if kind == "add" and isinstance(place, dict):
            place[str(what)] = what
        elif kind == "add":
            place.append(what)
        elif key is None:
            continue
        elif kind == "replace":
            place[key] = what
        elif kind == "drop":
            del place[key]
        elif kind == "again" and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif kind == "negate" and isinstance(place[key], int | float):
            place[key] = -place[key]
        elif kind == "swap":
            other = keys[(way[-1] + 1) % len(keys)]
            place[key], place[other] = place[other], place[key]
    return body


def line_edits(values, word=20):
    """Changes for `edited_lines`; ``values`` are what keys are given."""
    places = st.integers(0, 40)
    return st.lists(
        st.one_of(
            st.tuples(st.just("value"), places, values),
            st.tuples(st.sampled_from(["drop", "again"]), places, st.none()),
            st.tuples(st.just("swap"), places, places),
            st.tuples(st.sampled_from(["text", "table"]), places, st.text(max_size=word)),
        ),
        max_size=4,
    )


def edited_lines(text, changes):
    """The bytes of a TOML file whose lines were changed."""
    lines = text.splitlines()
    for kind, place, what in changes:
        at = place % max(1, len(lines))
        if kind == "value" and lines and "=" in lines[at]:
            lines[at] = f"{lines[at].split('=')[0]}= {what}"
        elif kind == "drop":
            del lines[at : at + 1]
        elif kind == "again":
            lines[at:at] = lines[at : at + 1]
        elif kind == "swap" and lines:
            other = what % len(lines)
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "text":
            lines.insert(at, what)
        elif kind == "table":
            lines.insert(at, f"[{what or 'a'}]")
    return "\n".join(lines).encode(errors="surrogatepass")
