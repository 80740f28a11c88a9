"""The pages, README.md and docs/*.md: their blocks of code, and the steps of somebody who follows one."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}

# Programs that a test can't start, or that need what it doesn't have.
_OTHERS = {
    "make": "an installation",
    "pip": "an installation",
    ".": "a shell",
    "ray": "a cluster",
    "python": "a checkout",
    ".venv/bin/pytest": "a checkout",
    "tensorboard": "a server",
    "mlflow": "a server",
}


@dataclass(frozen=True)
class Step:
    """A command line of a page with what is printed there, or a block of Python."""

    text: str
    output: str = ""
    is_python: bool = False

    def needs(self) -> str | None:
        """Returns why a test without a network and a cluster can't take the step, or None if it can."""
        if self.is_python:
            return None
        words = shlex.split(self.text, comments=True)
        if words[0] != "mnist-ray":
            return _OTHERS[words[0]]
        if words[1] == "jobs" or "--address" in words:
            return "a cluster"
        return "a bucket" if any("s3://" in word for word in words) else None


def blocks(text: str, languages: str = "sh|console") -> list[str]:
    """Returns the blocks of code in some languages, a regular expression."""
    return [body for language, body, _ in _all_blocks(text) if re.fullmatch(languages, language)]


def languages(text: str) -> set[str]:
    return {language for language, _, _ in _all_blocks(text)}


def command_lines(text: str) -> Iterator[str]:
    """Yields the command lines of a page: all of its blocks of sh, and what follows $ in its blocks of console."""
    return (step.text for step in steps(text) if not step.is_python)


def steps(text: str) -> Iterator[Step]:
    """Yields what somebody does who follows a page, in its order."""
    for language, body, _ in _all_blocks(text):
        if language == "python":
            yield Step(body, is_python=True)
        elif language == "sh":
            yield from (Step(line) for line in _joined(body).splitlines() if line.strip())
        elif language == "console":
            for part in re.split(r"^\$ ", _joined(body), flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield Step(command, output)


def yaml_files(text: str) -> dict[str, str]:
    """Returns the YAML files of a page: each block is the file that the last `NAME.yaml` before it names."""
    files = {}
    for language, body, before in _all_blocks(text):
        if language == "yaml" and (names := re.findall(r"`([\w-]+\.yaml)`", before)):
            files[names[-1]] = body
    return files


def _joined(body: str) -> str:
    return body.replace("\\\n", " ")


def _all_blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields language, content, and the page up to there."""
    # Every block is matched, in any language: the end of one left out would look like the begin of another.
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield found[1], found[2], text[: found.start()]
