"""The documents say what is: their command lines parse, their examples run, their messages stand in the code."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli as ray_cli

from mnist_ray import errors
from mnist_ray.cli.main import cli, run_command
from mnist_ray.interruption import SIGNAL_CODES
from tests.support.messages import is_said
from tests.support.pages import PAGES, blocks, command_lines, languages, steps

ROOT = Path(__file__).parents[1]
OPERATIONS, EXTENDING = PAGES["operations.md"], PAGES["extending.md"]

LINES = [
    (name, line)
    for name, text in PAGES.items()
    for line in command_lines(text)
    if line.startswith(("mnist-ray ", "ray "))
]


def check(group: click.Command, words: list[str]) -> None:
    """Parses a command line as click would, options and types; runs nothing."""
    if not words:
        return
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
    # click ends there; tests/test_pages.py runs it.
    if words[-1] == "--help":
        words.pop()
    check(cli if program == "mnist-ray" else ray_cli, words)


def test_the_documents_have_command_lines_of_both_programs() -> None:
    found = {(name, line.split()[0]) for name, line in LINES}
    assert {("README.md", "mnist-ray"), ("cluster.md", "mnist-ray"), ("cluster.md", "ray")} <= found
    with pytest.raises(click.UsageError):
        check(cli, ["tune", "--grid", "smoke", "--nodes", "4"])
    with pytest.raises(click.UsageError):
        check(ray_cli, ["up", "--yess", "cluster.yaml"])


def test_every_file_that_the_documents_name_is_there() -> None:
    path = r"\b((?:deploy|jobs|docs|tests|mnist_ray)/[\w./-]+\.\w+|cluster\.yaml|constraints\.txt)"
    named = re.findall(path, "\n".join(PAGES.values()))
    assert len(set(named)) >= 30
    for path in named:
        assert re.search("NAME|ROOM", path) or (ROOT / path).is_file(), path


def anchors(text: str) -> set[str]:
    """Returns the names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-").lower() for title in titles}


LINKS = [
    (name, target)
    for name, text in PAGES.items()
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    if not re.match("https?:", target)
]


@pytest.mark.parametrize(("name", "target"), LINKS, ids=[f"{name}: {target}" for name, target in LINKS])
def test_a_link_leads_to_a_file_and_to_a_heading_in_it(name: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    folder = ROOT if name == "README.md" else ROOT / "docs"
    path = (folder / file).resolve() if file else folder / name
    assert path.is_file()
    assert not anchor or anchor in anchors(path.read_text())


def test_the_front_page_is_short_and_leads_to_every_other_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    linked = {Path(target).name for name, target in LINKS if name == "README.md"}
    assert linked >= PAGES.keys() - {"README.md"}


def test_the_front_page_has_five_figures_which_the_benchmarks_have_too() -> None:
    section = PAGES["README.md"].partition("\n## Measured\n")[2].partition("\n## ")[0]
    results = [row.split("|")[2] for row in re.findall(r"^\|.*`.*\|$", section, re.MULTILINE)]
    assert len(results) == 5
    numbers = [number for result in results for number in re.findall(r"\d[\d.]*", result)]
    assert len(numbers) >= 5
    for number in numbers:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", PAGES["benchmarks.md"]), number


@pytest.mark.parametrize("name", PAGES)
def test_a_page_begins_with_what_its_reader_wants_and_a_command(name: str) -> None:
    title, empty, sentence, *rest = PAGES[name].splitlines()[:30]
    assert re.match("# .", title)
    assert empty == ""
    assert re.match(r"\*?[A-Z]\w+[ ,]", sentence)
    assert any(re.match(r"```(sh|console|python)$", line) for line in rest), rest


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_a_page_says_what_it_is(name: str) -> None:
    assert languages(PAGES[name]) <= {"sh", "console", "text", "python", "yaml", "sql", "hiveql", "pyspark"}


def test_every_name_in_code_that_extending_names_is_there() -> None:
    code = "".join(path.read_text() for room in ("mnist_ray", "tests") for path in (ROOT / room).rglob("*.py"))
    named = re.findall(r"`((?:test_|_)\w+|[A-Z_]{6,}|_?[a-z_]+(?=\(\)`))", EXTENDING)
    assert len(set(named)) >= 15
    for name in named:
        assert re.search(rf"^ *(?:def |class )?{name}\b", code, re.MULTILINE), name


def test_the_layout_lists_the_rooms_as_the_contract_does() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = [name for layer in layers for name in layer.split(" | ") if (ROOT / "mnist_ray" / name).is_dir()]
    lines = re.findall(r"^mnist_ray/(.*?)  ", PAGES["layout.md"], re.MULTILINE)
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
    return [
        (int(section.split(":")[0]), step.text, step.output.strip())
        for section in re.split("^## ", OPERATIONS, flags=re.MULTILINE)[1:]
        for step in steps(section)
        if step.output
    ]


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
        # An error is the last line; what the command did before is left out there.
        lines = captured.err.splitlines()[-1:]
        assert "mnist-ray: error" not in captured.err.removesuffix(f"{lines[0]}\n"), command
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
