"""A limit on the bytes that threads hold at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class BytesAtOnce:
    """Lets threads hold a number of bytes together; one that needs more than all waits until it is alone."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Waits until there is room, and takes it until the block ends."""
        size = min(size, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
