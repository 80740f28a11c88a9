import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.errors import ClusterError, ConfigError
from mnist_ray.storage.proxies import is_loopback, is_this_machine
from mnist_ray.submission.address import read_token, resolve_address, token_text


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("http://head:8265", "http://head:8265"),
        ("https://head.example/ray/", "https://head.example/ray"),
        ("10.0.0.7:8265", "http://10.0.0.7:8265"),
        ("[::1]:8265", "http://[::1]:8265"),
        ("auto", "auto"),
        ("local", None),
    ],
)
def test_an_address_becomes_the_url_of_a_job_api(option: str, expected: str | None) -> None:
    assert resolve_address(option, {}) == expected


def test_the_option_wins_over_both_variables_and_the_first_variable_over_the_second() -> None:
    environ = {"RAY_API_SERVER_ADDRESS": "first:1", "RAY_ADDRESS": "second:2"}
    assert resolve_address("option:3", environ) == "http://option:3"
    assert resolve_address("local", environ) is None
    assert resolve_address(None, environ) == "http://first:1"
    assert resolve_address(None, {"RAY_API_SERVER_ADDRESS": "", "RAY_ADDRESS": "second:2"}) == "http://second:2"
    assert resolve_address(None, {}) is None


def test_a_ray_client_address_is_refused_with_the_address_to_use() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_address(None, {"RAY_ADDRESS": "ray://head:10001"})
    assert str(caught.value) == (
        "RAY_ADDRESS='ray://head:10001': ray:// is Ray Client's port, which takes no jobs; "
        "use http://head:8265, the dashboard's port on the same host"
    )


@pytest.mark.parametrize(
    "option",
    ["", "head", "ftp://head:1", "anyscale://x", "http://", "http://h:99999", "h:x", "http://h:1/?a=b", "http://h\n:1"],
)
def test_what_is_no_job_api_address_is_refused_in_one_line_that_names_the_option(option: str) -> None:
    with pytest.raises(ConfigError, match=r"\A--address=.*http://HOST:PORT.*\Z"):
        resolve_address(option, {})


@pytest.mark.parametrize("option", ["http://user:hunter2@head:8265", "user:hunter2@head:8265"])
def test_credentials_in_an_address_are_refused_and_not_shown(option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_address(option, {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.9.9.9:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://[::ffff:127.0.0.1]:1", True),
        ("http://LOCALHOST.:1", True),
        ("http://127.1:1", True),
        ("http://0.0.0.0:1", True),
        ("http://localhost.example.org:1", False),
        ("http://10.0.0.7:1", False),
        ("http://127.0.0.1.example.org:1", False),
    ],
)
def test_only_this_machine_is_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_an_address_of_its_own_in_a_network_is_this_machine_and_no_other_is() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing; a machine without a network has the loopback's address.
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.254", 9))
        own = probe.getsockname()[0]
    assert is_this_machine(f"http://{own}:6379")
    assert is_this_machine("http://localhost:6379")
    for other in ("192.0.2.254", "head.example", "", "[2001:db8::1]", "[::ffff:192.0.2.254]"):
        assert not is_this_machine(f"http://{other}:6379"), other


def test_the_token_comes_from_the_variable_then_the_named_file_then_the_home_folder(tmp_path) -> None:
    named, default = tmp_path / "named", tmp_path / ".ray" / "auth_token"
    default.parent.mkdir()
    named.write_text("from-named\n")
    default.write_text("from-default\n")
    environ = {"RAY_AUTH_TOKEN": "from-variable", "RAY_AUTH_TOKEN_PATH": str(named), "HOME": str(tmp_path)}
    found = []
    while environ:
        token = read_token(environ)
        found.append((token.value, token.source) if token else None)
        environ.pop(next(iter(environ)))
    assert found == [
        ("from-variable", "RAY_AUTH_TOKEN"),
        ("from-named", f"RAY_AUTH_TOKEN_PATH={named}"),
        ("from-default", str(default)),
    ]


def test_the_home_folders_token_goes_to_another_machine_only_if_the_mode_asks_for_it(tmp_path) -> None:
    default = tmp_path / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("of-a-local-ray\n")
    home = {"HOME": str(tmp_path)}
    assert read_token(home, address="http://10.0.0.7:8265") is None
    for environ, address in (
        (home, "http://127.0.0.1:8265"),
        (home, "https://localhost:8265"),
        ({**home, "RAY_AUTH_MODE": "token"}, "http://10.0.0.7:8265"),
    ):
        token = read_token(environ, address=address)
        assert token is not None
        assert token.value == "of-a-local-ray"
    # One that was given goes where it was meant to.
    given = read_token({**home, "RAY_AUTH_TOKEN": "given"}, address="http://10.0.0.7:8265")
    assert given is not None
    assert given.value == "given"


@pytest.mark.parametrize(
    ("environ", "address", "expected"),
    [
        ({"RAY_AUTH_TOKEN": "a"}, None, "from RAY_AUTH_TOKEN, for any cluster"),
        ({"RAY_AUTH_TOKEN": "a"}, "http://10.0.0.7:1", "from RAY_AUTH_TOKEN, sent to http://10.0.0.7:1"),
        ({}, None, "from FILE, for clusters on this machine; it goes to another machine only with RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token"}, None, "from FILE, for any cluster"),
        ({}, "auto", "from FILE, sent to auto"),
        ({}, "http://10.0.0.7:1", "none is sent to http://10.0.0.7:1: FILE, which any local Ray creates, goes to an"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "a"}, None, "none is sent: RAY_AUTH_MODE=disabled"),
        ({"HOME": "/nowhere"}, "http://10.0.0.7:1", "none was found; a cluster with token authentication needs RAY_"),
    ],
)
def test_it_is_said_which_token_goes_where(
    tmp_path: Path, environ: dict[str, str], address: str | None, expected: str
) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    text = token_text(address, {"HOME": str(tmp_path), **environ})
    assert text.replace(str(file), "FILE").startswith(expected)
    assert "secret" not in text


def test_no_token_is_used_where_there_is_none_or_authentication_is_off(tmp_path) -> None:
    assert read_token({"HOME": str(tmp_path)}) is None
    assert read_token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "a", "HOME": str(tmp_path)}) is None


def test_authentication_asked_for_without_a_token_is_an_error(tmp_path) -> None:
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token: no token was found; give one in RAY_AUTH_TOKEN, "):
        read_token({"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)})


def test_a_token_never_shows_in_a_printed_token() -> None:
    assert "secret" not in repr(read_token({"RAY_AUTH_TOKEN": "secret"}))


@pytest.mark.parametrize("content", [b"", b"two words", b"a\r\nX-Header: b", b"\xff\xfe"])
def test_a_token_file_with_something_else_is_refused_without_showing_it(tmp_path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ClusterError) as caught:
        read_token({"RAY_AUTH_TOKEN_PATH": str(path)})
    assert str(caught.value).startswith(f"RAY_AUTH_TOKEN_PATH={path}: not a token")
    assert "X-Header" not in str(caught.value)


def test_a_named_token_file_that_is_missing_is_refused(tmp_path) -> None:
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH=.*nowhere: No such file or directory"):
        read_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")})


def test_finding_an_address_and_the_job_api_imports_no_ray() -> None:
    modules = "mnist_ray.submission.address, mnist_ray.submission.submit, mnist_ray.submission.follow"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
