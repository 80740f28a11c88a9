"""The code of the user's own networks: found by its name, known by its content, run only if it was given."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config.own_code import (
    CODE_VARIABLE,
    Code,
    check_code,
    code_at,
    given_code,
    giving,
    shipped,
    use_model,
)
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.errors import CheckpointError, ConfigError
from tests.support.own_networks import write_nets


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with giving([]):
        yield
    assert CODE_VARIABLE not in os.environ


def own(model: str, **settings: Any) -> TrainConfig:
    return variant_config("baseline", {"model": use_model(model), **settings})


def folder_of(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def test_the_hash_of_a_file_is_that_of_its_content() -> None:
    path = write_nets(Path("nets"))
    assert own(f"{path}:make_net").code_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_where_the_code_lies_makes_no_other_config(tmp_path: Path) -> None:
    configs = []
    for place in ("here", "there/deeper"):
        path = write_nets(tmp_path / place)
        with giving([]):
            configs.append(own(f"{path}:make_net"))
    assert configs[0] == configs[1]
    assert configs[0].model == "my_nets.py:make_net"
    assert configs[0].config_hash() == configs[1].config_hash()


def test_edited_code_makes_another_config(tmp_path: Path) -> None:
    path = write_nets(tmp_path)
    first = own(f"{path}:make_net")
    path.write_text(path.read_text() + "# edited\n")
    second = own(f"{path}:make_net")
    assert first.config_hash() != second.config_hash()
    assert first.model_copy(update={"code_sha256": None}) == second.model_copy(update={"code_sha256": None})


def test_the_hash_of_a_folder_is_that_of_the_names_and_contents_of_its_code(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "code", nets="a", layers__wide="b")
    before = Code(folder).sha256
    folder_of(tmp_path / "code/.venv", hidden="c")
    folder_of(tmp_path / "code/__pycache__").mkdir()
    (folder / "__pycache__/nets.cpython-311.pyc").write_bytes(b"x")
    (folder / "data.json").write_text("{}")
    os.symlink("/etc/passwd", folder / "link.py")
    assert Code(folder).sha256 == before
    copy = folder_of(tmp_path / "elsewhere", nets="a", layers__wide="b")
    assert Code(copy).sha256 == before
    (copy / "layers/wide.py").write_text("c")
    assert Code(copy).sha256 != before
    renamed = folder_of(tmp_path / "renamed", nets="a", layers__broad="b")
    assert Code(renamed).sha256 != before


@pytest.mark.parametrize(
    ("codes", "model", "named"),
    [
        ([], "code/nets.py:make", "nets.py:make"),
        (["code"], "code/nets.py:make", "nets.py:make"),
        (["code"], "nets.py:make", "nets.py:make"),
        (["code"], "nets:make", "nets:make"),
        (["code"], "code/layers/wide.py:make", "layers/wide.py:make"),
        (["code"], "layers.wide:make", "layers.wide:make"),
        (["code/nets.py"], "nets.py:make", "nets.py:make"),
        (["pack"], "pack.nets:make", "pack.nets:make"),
        (["pack"], "pack/nets.py:make", "nets.py:make"),
        (["pack"], "pack:make", "pack:make"),
        ([], "cnn", "cnn"),
    ],
)
def test_a_network_is_named_relative_to_its_code(tmp_path: Path, codes: list[str], model: str, named: str) -> None:
    folder_of(tmp_path / "code", nets="a", layers__wide="b")
    folder_of(tmp_path / "pack", __init__="", nets="a")
    (tmp_path / "pack/__init__.py").write_text("")
    with giving(codes):
        assert use_model(model) == named
        if ":" in named:
            (code,) = given_code()
            assert code.module_of(named.partition(":")[0]) is not None


def test_an_installed_package_is_found_without_importing_it() -> None:
    assert use_model("json.decoder:JSONDecoder") == "json.decoder:JSONDecoder"
    (code,) = given_code()
    assert (code.package, code.path.name) == ("json", "json")
    assert code.sha256 == code_at("json").sha256


@pytest.mark.parametrize(
    ("codes", "model", "expected"),
    [
        ([], "nosuch.py:make", "model='nosuch.py:make': no such file: "),
        (
            [],
            "nosuch:make",
            "model='nosuch:make': no module nosuch in given code, and none is installed; give",
        ),
        ([], "os:system", "model='os:system': no module os in given code, and none is installed"),
        ([], "json.decodr:x", "has no module json.decodr; did you mean json.decoder?"),
        ([], "my_nets.py:", "model='my_nets.py:': write it as FILE.py:FUNCTION or package.module:FUNCTION"),
        ([], ":make", "model=':make': write it as FILE.py:FUNCTION"),
        ([], "my_nets.py:a b", "write it as FILE.py:FUNCTION"),
        ([], "a.b.py:make", "its name must end in .py and have no other dot"),
        (["my_nets.py"], "my_net.py:make", "; did you mean my_nets.py?"),
        (["my_nets.py", "other/my_nets.py"], "my_nets:make", "other/my_nets.py both have it; give one of them"),
    ],
)
def test_a_network_that_is_not_there_is_refused(tmp_path: Path, codes: list[str], model: str, expected: str) -> None:
    write_nets(tmp_path)
    write_nets(tmp_path / "other", "# another version\n")
    (tmp_path / "a.b.py").write_text("")
    with giving(codes), pytest.raises(ConfigError) as raised:
        use_model(model)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("nosuch", "--code 'nosuch': no such file or folder, and no installed package of that name"),
        ("empty", "--code 'empty': holds no *.py file"),
        ("text.txt", "--code 'text.txt': not Python code"),
        ("os", "--code 'os': no such file or folder"),
    ],
)
def test_what_is_no_code_is_refused_and_gives_none(tmp_path: Path, option: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(ConfigError) as raised, giving([option]):
        pytest.fail("was given")
    assert str(raised.value).startswith(expected)
    assert given_code() == []


def test_a_stored_config_needs_the_same_code_again(tmp_path: Path) -> None:
    path = write_nets(tmp_path / "then")
    with giving([]):
        config = own(f"{path}:make_net")
    with pytest.raises(ConfigError, match=r"^run 'a': the code of its own network my_nets\.py:make_net is needed"):
        check_code(config, "run 'a'")
    edited = write_nets(tmp_path / "now", "# edited\n")
    then, now = (str(Code(file).sha256)[:12] for file in (path, edited))
    with giving([str(edited)]), pytest.raises(CheckpointError) as raised:
        check_code(config, "run 'a'")
    assert f"has changed, or was another file or folder (SHA-256 {then} then, {now} of my_nets.py now)" in str(
        raised.value
    )
    for codes in ([str(path)], [str(path.parent)], [str(edited), str(path)]):
        with giving(codes):
            check_code(config, "run 'a'")
            assert variant_config("baseline", config.model_dump(exclude={"variant"})) == config


def test_a_built_in_network_needs_no_code() -> None:
    assert variant_config("cnn").code_sha256 is None
    check_code(variant_config("cnn"), "run 'a'")


def test_code_is_shipped_whole_and_found_from_where_the_package_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nets(tmp_path)
    folder_of(tmp_path / "pack", nets="a", sub__more="b")
    with giving(["my_nets.py", "pack", "json"]):
        codes = given_code()
        files, variables = shipped(codes)
    job = tmp_path / "job"
    for place, path in files.items():
        (job / place).parent.mkdir(parents=True, exist_ok=True)
        (job / place).write_bytes(path.read_bytes())
    assert sorted(files) == ["code/0/my_nets.py", "code/1/pack/nets.py", "code/1/pack/sub/more.py"]
    monkeypatch.setattr("mnist_ray.config.own_code.mnist_ray.__file__", str(job / "mnist_ray/__init__.py"))
    monkeypatch.setenv(CODE_VARIABLE, variables[CODE_VARIABLE])
    assert [code.sha256 for code in given_code()] == [code.sha256 for code in codes]
    assert [code.path for code in given_code()[:2]] == [job / "code/0/my_nets.py", job / "code/1/pack"]
    monkeypatch.delenv(CODE_VARIABLE)
    assert shipped([]) == ({}, {})
