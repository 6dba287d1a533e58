"""The build folder: what is finished, what was changed, and who holds it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorita_deploy.errors import FolderBusy, LoritaDeployError, OutOfResource
from lorita_deploy.pipeline.folder import BuildFolder, key_of, listing


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.json").write_text("one")
    folder = BuildFolder(tmp_path)
    folder.finish("data", "key", ["a.json"], 1.5, "done")
    return folder


def test_a_finished_stage_is_found_by_its_key(folder):
    assert folder.finished("data", "key").line == "done"
    assert folder.finished("data", "other key") is None
    assert folder.finished("train", "key") is None


def test_a_changed_or_missing_output_is_not_finished_and_an_edit_is_kept(folder):
    (folder / "a.json").write_text("edited")
    assert folder.finished("data", "key") is None
    assert folder.keep_edited("data") == ["a.edited.json"]
    assert (folder / "a.edited.json").read_text() == "edited"
    assert folder.finished("data", "key") is None  # now it is missing


def test_an_edited_output_that_is_read_first_stays_where_it_is(folder, tmp_path):
    (folder / "a.json").write_text("edited")
    (tmp_path / "link.json").symlink_to("a.json")
    assert folder.keep_edited("data", [tmp_path / "link.json"]) == ["a.edited.json"]
    assert (folder / "a.json").read_text() == (folder / "a.edited.json").read_text() == "edited"


def test_a_damaged_stage_record_means_not_finished(folder):
    (folder / "stages" / "data.json").write_text('{"schema": "lorita-deploy/sta')
    assert folder.finished("data", "key") is None


def test_forget_starts_over(folder):
    folder.forget(["data"])
    assert folder.finished("data", "key") is None
    assert (folder / "a.json").read_text() == "one"


def test_a_second_process_is_refused_while_the_first_holds_the_folder(tmp_path):
    folder = BuildFolder(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lorita_deploy.pipeline.folder import BuildFolder\n"
        "from lorita_deploy.errors import FolderBusy\n"
        "try:\n"
        "    with BuildFolder(Path(sys.argv[1])).held(): print('held')\n"
        "except FolderBusy as error: print(error)\n"
    )

    def other():
        return subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout

    with folder.held():
        assert "another build is at work here (process " in other()
    assert other().strip() == "held"


def test_half_written_files_are_swept(tmp_path):
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / ".x.npz.abc.part").write_text("half")
    with BuildFolder(tmp_path).held():
        assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["file", "file/x", "x" * 300], ids=["a file", "inside of a file", "too long"])
def test_where_no_folder_can_be_the_path_is_wrong_and_no_resource(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LoritaDeployError, match="no folder can be made here") as caught, BuildFolder(tmp_path / name).held():
        pass
    assert caught.value.exit_code == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_out_of_resource():
    """Nothing can be made under /proc, not even by root."""
    with pytest.raises(OutOfResource, match="cannot write to the build folder"), BuildFolder(Path("/proc/no-such/x")).held():
        pass


def test_key_is_canonical():
    assert key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_a_listing_follows_links_and_bears_those_to_nothing(tmp_path):
    elsewhere, images = tmp_path / "elsewhere", tmp_path / "images"
    elsewhere.mkdir()
    images.mkdir()
    (images / "train").symlink_to(elsewhere)
    before = listing(images)
    (elsewhere / "a.png").write_bytes(b"1")
    assert listing(images) != before
    (images / "b.png").symlink_to(tmp_path / "gone.png")
    assert len(listing(images)) == 64


def test_busy_is_a_resource_error():
    assert FolderBusy.exit_code == 6
