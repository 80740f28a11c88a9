"""Determines the split of each file of the user's own data from the names of folders and files."""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Literal

from mnist_ray.data.sources import list_words
from mnist_ray.errors import DataError

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")

_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# These may mean testing or validation.
_UNCLEAR = {"eval", "evaluation", "holdout", "heldout", "trainval", "traintest"}
_NOT = {"no", "non", "not", "without", "except", "excluding"}
_GLUED = re.compile("train(?:ings?)?")
_COLUMNS = {"split", "subset", "set", "partition", "usage", "phase"}
_TOKEN = re.compile("[a-z]+")
_CAMEL = re.compile("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_HOW = "name every folder or file train, validation or test, or none of them"


def words_in(name: str) -> set[str]:
    """Returns the splits that the words of a folder's or file's name mean; 'unclear' for an ambiguous word.

    A word is a run of letters in any case: 'split=train', 'Train.parquet', 'x_train', 'train2017' and 'TrainData' all
    mean 'train'. 'not_train' and 'is_train=0' may mean any other split.
    """
    key, _, rest = name.rpartition("=")
    meanings, before = {"unclear"} if key and words_in(key) else set[str](), ""
    for token in _tokens(rest):
        word = token.removesuffix("set").removesuffix("data") or token
        word = word[1:] if word[1:] in _WORDS and word[0] in "xy" else word
        if token in _UNCLEAR or (word in _WORDS and before in _NOT):
            meanings.add("unclear")
        elif word in _WORDS:
            meanings.add(_WORDS[word])
        before = token
    return meanings


def _tokens(name: str) -> list[str]:
    return _TOKEN.findall(_CAMEL.sub(" ", name).lower())


def _glued_names(paths: Iterable[str]) -> tuple[str, str] | None:
    """Returns two names that differ only in a split's word, like 'mytrain' and 'mytest', or None."""
    tokens = {
        token: name for name in sorted({name for path in paths for name in path.split("/")}) for token in _tokens(name)
    }
    others = [*(word for word, part in _WORDS.items() if part != "train"), "tests", *_UNCLEAR]
    for token in sorted(tokens):
        for glued in _GLUED.finditer(token):
            for other in others:
                twin = f"{token[: glued.start()]}{other}{token[glued.end() :]}"
                if twin in tokens:
                    return tokens[token], tokens[twin]
    return None


def one_part(names: Iterable[str], path: str, source: str) -> Part | None:
    """Returns the split that some names of a path mean, None if they don't name a split.

    Raises:
      DataError: the names mean several splits, or contain an ambiguous word.
    """
    meanings = set[str]().union(*map(words_in, names))
    if len(meanings) > 1 or "unclear" in meanings:
        raise DataError(f"{source}: {path} may belong to more than one split; rename it: {_HOW}")
    return next((part for part in PARTS if part in meanings), None)


def common_folders(paths: Sequence[str]) -> int:
    """Returns the number of outermost folders that all paths share."""
    # All other paths sort between the first and the last, and share their common folders.
    folders = [path.split("/")[:-1] for path in paths]
    pairs = zip(min(folders), max(folders), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def parts_of_files(paths: Sequence[str], source: str) -> dict[Part, list[str]] | None:
    """Divides files among the splits by the words in their paths; returns None if no path names a split.

    Folders at any depth take precedence; a file's own name counts only if its folders name no split. Folders that all
    files share count only if nothing else names a split.

    Raises:
      DataError: see one_part and check_parts.
    """
    shared = common_folders(paths)

    def part_of(path: str) -> Part | None:
        *folders, name = path.split("/")[shared:]
        return one_part(folders, path, source) or one_part([name], path, source)

    parts = [part_of(path) for path in paths]
    if not any(parts):
        parts = [one_part(path.split("/")[:shared], path, source) for path in paths]
    return check_parts(paths, parts, source)


def check_parts(paths: Sequence[str], parts: Sequence[Part | None], source: str) -> dict[Part, list[str]] | None:
    """Returns the files of each split; None if no file has a split.

    Raises:
      DataError: only some files have a split, there are no training files, or names look like split names.
    """
    without = [path for path, part in zip(paths, parts, strict=True) if part is None]
    if len(without) == len(paths):
        if glued := _glued_names(paths):
            raise DataError(f"{source}: the names {' and '.join(glued)} look like split names; {_HOW}")
        return None
    of_part = {part: [path for path, its in zip(paths, parts, strict=True) if its == part] for part in PARTS}
    named = sorted(path for files in of_part.values() for path in files)
    if without:
        raise DataError(
            f"{source}: the names of {list_words(named)} name a split and those of {list_words(without)} don't; "
            f"{_HOW} (a class must not have a split's name)"
        )
    if not of_part["train"]:
        raise DataError(
            f"{source}: {list_words(named)}: no training files, only {' and '.join(_given(of_part))}; {_HOW}"
        )
    return of_part


def _given(of_part: dict[Part, list[str]]) -> list[str]:
    return [part for part in PARTS if of_part[part]]


def may_tell_splits(column: str) -> bool:
    """Tells by a column's name whether it may say which split a row belongs to."""
    return column.lower() in _COLUMNS or bool(words_in(column))


def check_column(column: str, values: set[str], place: str) -> None:
    """Checks that a column for which may_tell_splits is true doesn't divide rows that are read as one split.

    Raises:
      DataError: the column divides the rows.
    """
    if len(values) > 1 and (words_in(column) or any(map(words_in, values))):
        raise DataError(
            f"{place}: the column {column} divides the rows into splits ({list_words(sorted(values))}); "
            "write each to a file of its own, named train, validation or test, or drop the column"
        )


def splits_note(of_part: dict[Part, list[str]] | None) -> str:
    """Returns a note for users on where the splits come from."""
    if of_part is None:
        return "no split names: every fifth image of a class is for test"
    how = f"splits by name: {', '.join(_given(of_part))}"
    return how if of_part["test"] else f"{how}; every fifth training image of a class is for test"
