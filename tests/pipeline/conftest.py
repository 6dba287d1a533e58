"""One finished build of fcn on digits, shared by the tests of the corridor."""

import pytest
from fcn_builds import fcn

from lorita_deploy.pipeline import build


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of a finished build, and its report. Who changes something there puts it back; others copy it."""
    folder = tmp_path_factory.mktemp("fcn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGNAME", "ada-of-the-lab")
        patch.setenv("USER", "ada-of-the-lab")
        patch.setenv("HUB_TOKEN", "sesame-open-please")
        return folder, build(fcn(folder))
