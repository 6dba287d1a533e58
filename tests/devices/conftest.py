"""A device: this machine, through OpenSSH's own server."""

import pytest
from openssh import MISSING, Sshd


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    if MISSING:
        pytest.skip(f"not installed here: {', '.join(MISSING)} (apt install openssh-server openssh-client)")
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.close()
