"""What surrounds each call: what it changes in the program's process, and how it ends there."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mnist_ray.config.own_code import giving
from mnist_ray.errors import MnistRayError, RunFailedError
from mnist_ray.interruption import last_stop, stoppable
from mnist_ray.text.meanwhile import quiet as silenced

StrPath = str | os.PathLike[str]
# What a call changes is the process's.
_one_at_a_time = threading.RLock()


@contextmanager
def call(*, quiet: bool, code: Sequence[StrPath] = ()) -> Iterator[None]:
    """Surrounds a call; standard error, the signals' handlers, given code and torch's settings are then as before.

    Args:
      quiet: whether nothing is said on standard error.
      code: code of the user's own networks.

    Raises:
      KeyboardInterrupt: on Ctrl-C, and on another signal that does not end the program.
      RunFailedError: the call was given up.
    """
    from mnist_ray.models.device import torch_settings_kept

    codes = [os.fspath(each) for each in code]
    with _one_at_a_time, silenced(quiet), giving(codes), torch_settings_kept(), warnings.catch_warnings():
        # Ray imports tqdm, which asks for ipywidgets in a notebook without them.
        warnings.filterwarnings("ignore", "IProgress not found")
        try:
            with stoppable():
                yield
        except MnistRayError:
            raise
        except (KeyboardInterrupt, Exception) as error:
            # Ray may replace a stop by an interrupt of its own, and an interrupted import can cause any error later.
            stop = last_stop()
            if stop is None:
                raise
            if stop.code == RunFailedError.exit_code:
                raise RunFailedError(stop.reason) from None
            if stop.code != 128 + signal.SIGINT:
                # What the signal does to this program is not for a call to decide.
                signal.raise_signal(stop.code - 128)
            raise KeyboardInterrupt(stop.reason) from error
