"""Every word of state has one meaning, in every medium."""

import io
import re
from typing import get_args

import pytest
from rich.console import Console

from lorita_deploy.records import Change, Finding
from lorita_deploy.report import facts, markdown, markup, networks, proofs, states, words
from lorita_deploy.report.table import Table
from lorita_deploy.report.terminal import render


def shown(table, **options):
    file = io.StringIO()
    Console(file=file, width=200, **options).print(render(table, 200))
    return file.getvalue()


@pytest.mark.parametrize(
    "annotation", [Finding.model_fields["state"], Change.model_fields["verdict"]], ids=["state", "verdict"]
)
def test_no_state_of_the_records_lacks_its_meaning(annotation):
    assert set(get_args(annotation.annotation)) <= states.STATES.keys()


def test_a_table_explains_the_states_it_uses_and_no_others(report):
    table = proofs.fidelity(report.fidelity)
    assert states.legend(table) == "passed: max rel within the tolerance"
    assert states.legend(networks.probes(report.plan)) == "kept: within the budget for accuracy"
    recovered = report.plan.probes[0].model_copy(update={"recovered": 2})
    probes = networks.probes(report.plan.model_copy(update={"probes": (*report.plan.probes, recovered)}))
    assert ["after recovery" in judged for _, judged, _ in probes.rows] == [False, True]
    assert states.legend(probes) == "kept: within the budget for accuracy"
    assert states.legend(facts.environment(report.host)) == ""
    assert states.legend(Table("", ("", ""), (("ok", "x"),))) == "", "a name is no state"
    for text in (shown(table), markup.tabled(table), markdown.render(report)):
        assert "passed: max rel within the tolerance" in text


def test_colour_only_repeats_what_the_word_says():
    table = Table("", ("", "state"), (("a", "FAILED"), ("b", "passed"), ("c", "same")))
    plain = shown(table)
    assert "\x1b" not in plain
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown(table, force_terminal=True, no_color=True))
    coloured = shown(table, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;31mFAILED" in coloured
    assert "\x1b[32mpassed" in coloured


def test_the_one_table_at_the_end_says_where_times_come_from(report, estimated):
    here, there = facts.summary(report), facts.summary(estimated)
    assert [row[0] for row in here.rows][-1] == "median, cpu, measured"
    assert here.note == f"measured: {words.MEANING['measured']}"
    assert there.rows[-1] == ("time, jetson-orin-nano, estimated", "1", "0.43 of dense")
    assert there.note == f"measured: {words.MEANING['measured']}; estimated: {words.MEANING['estimated']}"
    dense = facts.summary(estimated.model_copy(update={"shipped": "dense"}))
    assert dense.rows[-1][1:] == ("1", "1.00 of dense")
