"""A training step as a CUDA graph: recorded once, then launched by one call instead of hundreds."""

from collections.abc import Callable

import torch

# The first step sets up library handles, the optimizer's state and tables, which can't be recorded.
_STEPS_BEFORE_RECORDING = 3


class RecordedStep:
    """A step whose inputs that change from call to call all lie in memory on the device.

    On a GPU, the first calls run directly; then one call is recorded as a CUDA graph, which later calls replay. On
    other devices, every call runs directly.

    The function is not stored: a reference to it would keep the memory of its stack alive.

    Reference: "CUDA semantics: CUDA Graphs" in PyTorch's documentation.
    """

    def __init__(self, *, device: torch.device) -> None:
        self._device = device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, function: Callable[[], None]) -> None:
        """Runs the function once or replays its recording; every call must pass the same function."""
        if self._device.type != "cuda":
            function()
        elif self._calls < _STEPS_BEFORE_RECORDING:
            self._calls += 1
            self._on_side_stream(function)
        else:
            self._graph = self._graph or self._record(function)
            self._graph.replay()

    def _on_side_stream(self, function: Callable[[], None]) -> None:
        # Recording uses its own stream, and resources belong to the stream on which they were first used.
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream(self._device).wait_stream(side)

    def _record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Recording executes no kernel.
        with torch.cuda.graph(graph):
            function()
        return graph
