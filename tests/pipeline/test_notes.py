"""What was worth saying while a stage ran is said again where it is found done, and stands in the report."""

import torch
from fcn_builds import Seen
from safetensors.torch import save_file

from lorita_deploy.pipeline import build, make_options
from lorita_deploy.pipeline.context import Build
from lorita_deploy.records import BuildReport

RANDOM = "no --checkpoint was given: the weights are random"


def told(folder, until="bundle", **options):
    seen = Seen()
    given = {"model": "fcn", "target": "jetson-orin-nano", "train": False, "calibration_samples": 32, "speedup": 1.5}
    build(make_options(**{**given, "out": str(folder), **options}), until=until, watch=seen)
    return seen


def test_notes_are_told_again_and_stand_in_the_report(tmp_path):
    first = told(tmp_path)
    assert RANDOM in first.notes
    report = BuildReport.load(tmp_path / "report.json")
    assert RANDOM in report.notes
    assert len(set(report.notes)) == len(report.notes)
    for page in ("report.md", "report.html"):
        assert RANDOM in (tmp_path / page).read_text()
    again = told(tmp_path)
    assert (again.run, again.notes) == ([], first.notes)


def test_a_note_of_the_plan_stands_in_the_report_once(tmp_path):
    assert any("cannot be met" in note for note in told(tmp_path, speedup=1000.0).notes)
    report = BuildReport.load(tmp_path / "report.json")
    assert [note for note in (*report.plan.notes, *report.notes) if "cannot be met" in note] == list(report.plan.notes)
    assert (tmp_path / "report.md").read_text().count("cannot be met") == 1


def test_what_no_longer_holds_and_what_happened_once_is_not_told_again(tmp_path):
    assert told(tmp_path / "out", "collapse").notes == [RANDOM]
    options = make_options(model="fcn", out=str(tmp_path / "out"))
    torch.manual_seed(0)
    save_file(Build(options).spec.build(10, 28).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "out" / "collapsed.json").write_text("{}")
    seen = told(tmp_path / "out", "collapse", checkpoint=str(tmp_path / "w.safetensors"))
    assert seen.notes == ["a file of stage collapse was changed by hand; it is kept as collapsed.edited.json"]
    assert told(tmp_path / "out", "collapse", checkpoint=str(tmp_path / "w.safetensors")).notes == []
