"""The messages of the code, as templates, and whether a message of the documents is one that they can make."""

import ast
import functools
import re
from pathlib import Path

# What only a run knows: a hole of a template, and what the documents write for it.
HOLE = "…"
# Templates that join two messages have no words of their own.
_JOINS = {f"{HOLE}{between}{HOLE}" for between in (": ", "; ", ". ")}


@functools.cache
def templates(folder: Path) -> frozenset[str]:
    """Returns the texts in the code below a folder: named constants filled in, and … for each value."""
    nodes = [node for path in sorted(folder.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text()))]
    constants = {
        node.targets[0].id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()
    }

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return text(node.left) + text(node.right)
        if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.value.id in constants:
            return text(constants[node.value.id])
        return HOLE

    docstrings = {
        node.body[0].value
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = {text(node) for node in nodes if isinstance(node, ast.expr) and node not in docstrings}
    return frozenset(each for each in texts if re.search(r"\w", each) or each in _JOINS)


def is_said(message: str, folder: Path) -> bool:
    """Tells whether one template of the code makes the whole message, its holes filled with others.

    A … of the message stands for anything that the template has there.
    """
    return _is_made(message, templates(folder))


@functools.cache
def _is_made(message: str, among: frozenset[str]) -> bool:
    return any(_may_make(template, message) and _fits(message, template, among) for template in among)


def _may_make(template: str, message: str) -> bool:
    """Sorts out quickly most templates that have nothing to do with a message."""
    pieces, parts = template.split(HOLE), message.split(HOLE)
    if template in _JOINS:
        return pieces[1] in message
    alike = _begins_alike(pieces[0], parts[0]) and _begins_alike(pieces[-1][::-1], parts[-1][::-1])
    return alike and any(piece in message for piece in pieces if piece.strip())


def _begins_alike(piece: str, part: str) -> bool:
    return piece.startswith(part) or part.startswith(piece)


def _fits(message: str, template: str, among: frozenset[str]) -> bool:
    @functools.cache
    def rest(at: int, place: int) -> bool:
        if place == len(template):
            return at == len(message)
        if at < len(message) and message[at] == HOLE:
            return any(rest(at + 1, further) for further in range(place + 1, len(template) + 1))
        if template[place] == HOLE:
            ends = range(at, len(message) + 1)
            return any(rest(end, place + 1) and _fills(message[at:end], message, among) for end in ends)
        return at < len(message) and message[at] == template[place] and rest(at + 1, place + 1)

    return rest(0, 0)


def _fills(value: str, message: str, among: frozenset[str]) -> bool:
    """Tells whether a hole may have a value: nothing, what only a run knows, or another text of the code."""
    return not value or re.fullmatch(r"…(/…)*", value) is not None or (value != message and _is_made(value, among))
