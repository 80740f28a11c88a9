"""A training step as a CUDA graph: recorded once, then started by one call instead of hundreds."""

from collections.abc import Callable

import torch

# What a first step sets up (library handles, an optimizer's state, tables) can't be recorded.
_STEPS_BEFORE_RECORDING = 3


class RecordedStep:
    """A function without arguments, for which all that changes from call to call lies in memory on the device.

    Its first calls run as they are; then, on a GPU, a call is recorded as a CUDA graph and played again from there
    on. On other devices all calls run as they are.

    Reference: "CUDA semantics: CUDA Graphs" in PyTorch's documentation.
    """

    def __init__(self, function: Callable[[], None], *, device: torch.device) -> None:
        """Takes the function; nothing runs yet."""
        self._function, self._device = function, device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Runs the function once."""
        if self._device.type != "cuda":
            self._function()
        elif self._calls < _STEPS_BEFORE_RECORDING:
            self._calls += 1
            self._on_side_stream()
        else:
            self._graph = self._graph or self._record()
            self._graph.replay()

    def _on_side_stream(self) -> None:
        # Recording happens on a stream of its own, and what is set up belongs to the stream that it was first used on.
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            self._function()
        torch.cuda.current_stream(self._device).wait_stream(side)

    def _record(self) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Recording runs nothing.
        with torch.cuda.graph(graph):
            self._function()
        return graph
