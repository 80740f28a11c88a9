"""The counter of attempts, by itself: what its process imports is neither torch nor Ray Data."""

from collections import Counter


class Attempts:
    """Counts how often each span was begun: one whose worker dies, at a certain image say, Ray Data begins for ever.

    Args:
      limit: how often a span may be begun.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun: Counter[int] = Counter()

    def may_begin(self, first_shard: int) -> bool:
        """Tells whether the span may be begun, for the first time or again."""
        self._begun[first_shard] += 1
        return self._begun[first_shard] <= self._limit
