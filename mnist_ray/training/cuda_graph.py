"""A training step as a CUDA graph: recorded once, then started by one call instead of hundreds."""

from collections.abc import Callable

import torch

# What a first step sets up (library handles, an optimizer's state, tables) can't be recorded.
_STEPS_BEFORE_RECORDING = 3


class RecordedStep:
    """A step for which all that changes from call to call lies in memory on the device.

    Its first calls run as they are; then, on a GPU, a call is recorded as a CUDA graph and played again from there
    on. On other devices all calls run as they are.

    The function is not kept: it would keep the memory of its stack from being freed with the last reference to it.

    Reference: "CUDA semantics: CUDA Graphs" in PyTorch's documentation.
    """

    def __init__(self, *, device: torch.device) -> None:
        """Begins without a recording."""
        self._device = device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, function: Callable[[], None]) -> None:
        """Runs the function once, always the same one, or plays its recording."""
        if self._device.type != "cuda":
            function()
        elif self._calls < _STEPS_BEFORE_RECORDING:
            self._calls += 1
            self._on_side_stream(function)
        else:
            self._graph = self._graph or self._record(function)
            self._graph.replay()

    def _on_side_stream(self, function: Callable[[], None]) -> None:
        # Recording happens on a stream of its own, and what is set up belongs to the stream that it was first used on.
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream(self._device).wait_stream(side)

    def _record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Recording runs nothing.
        with torch.cuda.graph(graph):
            function()
        return graph
