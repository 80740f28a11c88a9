"""The global random generators of torch, numpy and Python, which a user's own network may draw from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
    """Seeds the process's global generators, for networks that draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would also note a traceback for a GPU that isn't in use.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seeds the global generators, those of GPUs left out, for a block; restores their states after it."""
    before = _states()
    seed_generators(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def have_drawn(seed: int) -> bool:
    """Tells, inside a block of seeded_generators, whether numbers were drawn from the generators since its begin."""
    now = _states()
    with seeded_generators(seed):
        begin = _states()
    return (
        not torch.equal(now[0], begin[0])
        or now[1] != begin[1]
        or any(np.any(a != b) for a, b in zip(now[2], begin[2], strict=True))
    )


def _states() -> tuple[torch.Tensor, Any, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()
