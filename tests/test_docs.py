"""The documents say what is: their command lines parse, their examples run, their messages stand in the code."""

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli as ray_cli

from mnist_ray import errors
from mnist_ray.cli.main import cli, run_command

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLUSTER = (ROOT / "docs/cluster.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
SECURITY = (ROOT / "docs/security.md").read_text()


def blocks(text: str, languages: str = "sh|console|") -> list[str]:
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


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
    """Checks the command line that a cluster runs: one of jobs/, or the script that asks for GPUs."""
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
    text = CLUSTER + OPERATIONS + SECURITY
    named = re.findall(r"\b((?:deploy|jobs|docs|tests|mnist_ray)/[\w./-]+\.\w+|cluster\.yaml|constraints\.txt)", text)
    assert len(set(named)) >= 7
    for path in named:
        assert (ROOT / path).is_file(), path
    for text in (CLUSTER, OPERATIONS):
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert (ROOT / "docs" / link).is_file(), link


def test_operations_has_every_exit_code() -> None:
    codes = {0, 1, 2, 130, 143} | {error.exit_code for error in vars(errors).values() if isinstance(error, type)}
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


@functools.cache
def messages_in_the_code() -> str:
    """Returns all texts in the code, a line each: constants filled in, and … for what only a run knows."""
    nodes = [node for path in (ROOT / "mnist_ray").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    constants = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            constants[node.targets[0].id] = node.value

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.value.id in constants:
            return text(constants[node.value.id])
        return "…"

    return "\n".join(text(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant))


def quoted_messages() -> list[str]:
    in_tables = re.findall(r"^\| `([^`|]{20,})` \|", OPERATIONS, re.MULTILINE)
    return in_tables + [line for block in blocks(OPERATIONS, "text") for line in block.splitlines()]


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_of_operations_stands_in_the_code(message: str) -> None:
    # The code may join a message from several texts: each clause must be there, word for word.
    clauses = [clause for part in message.split("…") for clause in re.split("[:;] ", part) if len(clause.split()) > 1]
    assert clauses
    for clause in clauses:
        assert clause.strip(": ") in messages_in_the_code(), clause
