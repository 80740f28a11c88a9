"""Where the lines and bars go that say what happens meanwhile: to stderr, or nowhere in a quiet call from Python."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _Nowhere(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


_nowhere = _Nowhere()
_is_quiet = False


def meanwhile() -> TextIO:
    """Returns the stream for what is said while a command runs; ask anew for each line or bar."""
    return _nowhere if _is_quiet else sys.stderr


@contextmanager
def quiet(is_quiet: bool = True) -> Iterator[None]:
    """Says nothing during the block, in any thread: threads that work for a call don't know whose they are."""
    global _is_quiet
    before, _is_quiet = _is_quiet, is_quiet
    try:
        yield
    finally:
        _is_quiet = before
