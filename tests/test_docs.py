"""The documents say what is: their command lines parse, their examples run, their messages stand in the code."""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli as ray_cli

from mnist_ray import errors
from mnist_ray.cli.main import cli, run_command
from mnist_ray.interruption import SIGNAL_CODES
from tests.support.messages import is_said

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLUSTER = (ROOT / "docs/cluster.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
SECURITY = (ROOT / "docs/security.md").read_text()
EXTENDING = (ROOT / "docs/extending.md").read_text()


def blocks(text: str, languages: str = "sh|console|") -> list[str]:
    # Every block is matched, in any language: the end of one left out would look like the begin of another.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in found if re.fullmatch(languages, language)]


def command_lines(text: str) -> Iterator[str]:
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            if re.match(r"(mnist-ray|ray) ", line):
                yield line


LINES = [(path.name, line) for path in DOCUMENTS for line in command_lines(path.read_text())]


def check(group: click.Command, words: list[str]) -> None:
    """Parses a command line as click would, options and types; runs nothing."""
    name, *rest = words
    assert isinstance(group, click.Group)
    assert name in group.commands, name
    command = group.commands[name]
    if isinstance(command, click.Group):
        check(command, rest)
    elif name == "plan":
        check(group, rest)
    else:
        command.make_context(name, list(rest))
        if "--" in rest:
            check_job(rest[rest.index("--") + 1 :])


def check_job(words: list[str]) -> None:
    """Checks the command line that a cluster runs: the launcher, one of jobs/, or the script that asks for GPUs."""
    if words[0] == "mnist-ray":
        check(cli, words[1:])
        return
    assert words[0] == "python"
    script = Path(words[1])
    if script.name == "request_gpus.py":
        spec = importlib.util.spec_from_file_location("request_gpus", ROOT / "deploy" / script)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main.make_context("request_gpus", words[2:])
    else:
        assert (ROOT / script).is_file()
        check(cli, [script.stem, *words[2:]])


@pytest.mark.parametrize(("name", "line"), LINES, ids=[f"{name}: {line[:60]}" for name, line in LINES])
def test_a_command_line_of_the_documents_is_one(name: str, line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    check(cli if program == "mnist-ray" else ray_cli, words)


def test_the_documents_have_command_lines_of_both_programs() -> None:
    found = {(name, line.split()[0]) for name, line in LINES}
    assert {("README.md", "mnist-ray"), ("cluster.md", "mnist-ray"), ("cluster.md", "ray")} <= found
    with pytest.raises(click.UsageError):
        check(cli, ["tune", "--grid", "smoke", "--nodes", "4"])
    with pytest.raises(click.UsageError):
        check(ray_cli, ["up", "--yess", "cluster.yaml"])


def test_every_file_that_the_documents_name_is_there() -> None:
    text = CLUSTER + OPERATIONS + SECURITY + EXTENDING
    named = re.findall(r"\b((?:deploy|jobs|docs|tests|mnist_ray)/[\w./-]+\.\w+|cluster\.yaml|constraints\.txt)", text)
    assert len(set(named)) >= 7
    for path in named:
        assert "NAME" in path or (ROOT / path).is_file(), path
    for text in (CLUSTER, OPERATIONS):
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert (ROOT / "docs" / link).is_file(), link


def test_every_name_in_code_that_extending_names_is_there() -> None:
    code = "".join(path.read_text() for room in ("mnist_ray", "tests") for path in (ROOT / room).rglob("*.py"))
    named = re.findall(r"`((?:test_|_)\w+|[A-Z_]{6,}|_?[a-z_]+(?=\(\)`))", EXTENDING)
    assert len(set(named)) >= 15
    for name in named:
        assert re.search(rf"^ *(?:def |class )?{name}\b", code, re.MULTILINE), name


def test_the_layout_in_the_readme_lists_the_rooms_as_the_contract_does() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = [name for layer in layers for name in layer.split(" | ") if (ROOT / "mnist_ray" / name).is_dir()]
    layout = (ROOT / "README.md").read_text().partition("\n## Layout\n")[2]
    lines = re.findall(r"^mnist_ray/(.*?)  ", layout, re.MULTILINE)
    assert [name for line in lines for name in re.findall(r"(\w+)/", line)] == rooms


def test_operations_has_every_exit_code() -> None:
    codes = {0, 1, 2, *SIGNAL_CODES} | {error.exit_code for error in vars(errors).values() if isinstance(error, type)}
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", OPERATIONS, re.MULTILINE)}
    assert table == codes
    headings = {
        int(code) for line in re.findall("^## (.*):", OPERATIONS, re.MULTILINE) for code in re.findall(r"\d+", line)
    }
    assert headings == codes - {0, 1}


def examples() -> list[tuple[int, str, str]]:
    """Returns each example of operations.md: the code that its section is about, the command and what it prints."""
    found = []
    for section in re.split("^## ", OPERATIONS, flags=re.MULTILINE)[1:]:
        for block in blocks(section, "console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append((int(section.split(":")[0]), command, output.strip()))
    return found


def test_the_examples_of_operations_print_what_is_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    assert {code for code, _, _ in examples()} == {2, 3, 5, 6, 7}
    for code, command, expected in examples():
        expected_code = code if expected.startswith("mnist-ray: error") else 0
        assert run_command(shlex.split(command)[1:]) == expected_code, command
        captured = capsys.readouterr()
        # What was understood of the data, said before a run that fails, is left out there.
        lines = [line for line in captured.err.splitlines() if not line.startswith("dataset ")]
        printed = (captured.out if expected_code == 0 else "\n".join(lines)).strip().replace(f"{tmp_path}/", "")
        assert re.fullmatch(re.escape(expected).replace("…", ".+"), printed), f"{command}\n{printed}"


def quoted_messages() -> list[str]:
    """Returns the messages that operations.md quotes, whole, but for what only a run knows."""
    ends = re.findall(r"^\| `([^`|]{20,})` \|", OPERATIONS, re.MULTILINE)
    return [f"…: {end}" for end in ends] + [line for block in blocks(OPERATIONS, "text") for line in block.splitlines()]


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_of_operations_is_one_that_the_code_can_say(message: str) -> None:
    assert is_said(message, ROOT / "mnist_ray")


@pytest.mark.parametrize(
    "message",
    [
        "run …: exists, not finished; wait for its end, stop it, or choose another --name",
        "job …: failed before it finished: …",
        "the disk is full; get new ones",
        "storage=…: the folder is gone: deleted; bring it back, and go on with the same command",
        "…: the job needs … and the cluster lacks …",
        "stopped; the same command",
    ],
)
def test_a_message_of_parts_of_others_is_none(message: str) -> None:
    assert not is_said(message, ROOT / "mnist_ray")
