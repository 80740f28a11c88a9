"""A notebook's kernel, as Jupyter runs it: its cells' output, and its interrupt button."""

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager


@dataclass(frozen=True)
class Cell:
    """What a cell has shown: its standard streams, the value of its last line, and its error's class."""

    streams: str
    value: str | None
    error: str | None


@dataclass(frozen=True)
class Kernel:
    """A running kernel.

    Attributes:
      pid: of its process.
    """

    manager: KernelManager
    client: BlockingKernelClient
    pid: int

    def run(self, code: str, *, interrupt_when: Callable[[], object] = lambda: False) -> Cell:
        """Runs a cell to its end; interrupts it once a condition holds."""
        asked, deadline = self.client.execute(code), time.monotonic() + 240
        streams, value, error = "", None, None
        while time.monotonic() < deadline:
            if interrupt_when():
                self.manager.interrupt_kernel()
                interrupt_when = bool
            try:
                message = self.client.get_iopub_msg(timeout=0.1)
            except queue.Empty:
                continue
            content = message["content"]
            if message["parent_header"].get("msg_id") != asked:
                continue
            streams += content["text"] if message["msg_type"] == "stream" else ""
            # What is displayed besides is shown, too.
            streams += str(content["data"]) if message["msg_type"] == "display_data" else ""
            value = content["data"]["text/plain"] if message["msg_type"] == "execute_result" else value
            error = content["ename"] if message["msg_type"] == "error" else error
            if content.get("execution_state") == "idle":
                return Cell(streams, value, error)
        raise TimeoutError(code)


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """Runs a kernel of this environment in a folder."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(folder))
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        yield Kernel(manager, client, manager.provisioner.pid)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
