"""Addresses of devices, as people write them."""

import pytest

from lorita_deploy.devices.address import Address, find_device, parse
from lorita_deploy.devices.local import LocalDevice
from lorita_deploy.errors import LoritaDeployError, UnknownName


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://orin", Address("orin")),
        ("ssh://me@orin.local:2222", Address("orin.local", "me", 2222)),
        ("ssh://me@[fe80::1]:22/", Address("fe80::1", "me", 22)),
        ("ssh://me@10.0.0.7?python=~/venv/bin/python3", Address("10.0.0.7", "me", python="~/venv/bin/python3")),
        ("ssh://me@corp.com@orin", Address("orin", "me@corp.com")),
        ("ssh://orin:22?folder=/srv/a@b", Address("orin", port=22, folder="/srv/a@b")),
        ("ssh://Orin?folder=/srv/ssd/a%20b&python=/x/c++", Address("Orin", python="/x/c++", folder="/srv/ssd/a b")),
    ],
)
def test_addresses(text, expected):
    assert parse(text) == expected
    assert parse(str(expected)) == Address(expected.host, expected.user, expected.port)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ssh://", "not the address"),
        ("ssh://me@", "not the address"),
        ("ssh://orin/path", "not the address"),
        ("ssh://-oProxyCommand=touch", "characters"),
        ("ssh://me@-orin", "characters"),
        ("ssh://-me@orin", "characters"),
        ("ssh://a b@orin", "characters"),
        ("ssh://orin;ls", "characters"),
        ("ssh://orin%3Bls", "characters"),
        ("ssh://%2DoProxyCommand%3Dx", "characters"),
        ("ssh://$(ls)@orin", "characters"),
        ("ssh://orin:0", "port"),
        ("ssh://orin:99999", "port"),
        ("ssh://orin:", "port"),
        ("ssh://orin:" + "1" * 5000, "not the address"),
        ("ssh://orin?pythn=/x", "did you mean python"),
        ("ssh://orin?python=", "empty"),
        ("ssh://orin?python=a%0Ab", "empty"),
    ],
)
def test_what_is_no_address_is_refused(text, word):
    with pytest.raises(LoritaDeployError, match=word) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    assert caught.value.fix is not None or "did you mean" in caught.value.what


@pytest.mark.parametrize(
    "password", ["secret", "secret@", "se@secret", "se/secret", "se?secret", "se:secret", "1/secret", "secret]"]
)
def test_a_password_is_refused_and_not_repeated(password):
    with pytest.raises(LoritaDeployError, match="no password") as caught:
        parse(f"ssh://me:{password}@orin")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "ssh://me:1?secret@orin",
        "ssh://me:1?secret=&b@orin",
        "ssh://me:1?secret&b=@orin",
        "me:secret@orin",
        "ssh:me:secret@orin",
    ],
)
def test_what_may_be_a_password_is_not_repeated(text):
    with pytest.raises(LoritaDeployError) as caught:
        find_device(text)
    assert "secret" not in str(caught.value)


def test_devices_by_name():
    assert isinstance(find_device("local"), LocalDevice)
    assert find_device("ssh://me@orin:22?python=/usr/bin/python3").name == "ssh://me@orin:22"
    with pytest.raises(UnknownName, match="--torch-device"):
        find_device("cuda")
    with pytest.raises(UnknownName, match="ssh://user@host"):
        find_device("orin")
