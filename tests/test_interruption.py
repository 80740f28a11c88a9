import signal
import threading
from collections.abc import Iterator

import pytest

from mnist_ray.interruption import Stop, deferred, give_up, last_stop, stoppable


@pytest.fixture
def sigterm_is_noted() -> Iterator[list[int]]:
    """Stands in for whatever handled SIGTERM before a command."""
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    yield noted
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "code", "reason"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_raises_a_stop_once_and_is_ignored_while_that_is_cleaned_up(
    number: signal.Signals, code: int, reason: str
) -> None:
    with stoppable():
        assert last_stop() is None
        with pytest.raises(Stop) as stopped:
            signal.raise_signal(number)
        assert (stopped.value.code, stopped.value.reason) == (code, reason)
        signal.raise_signal(number)
        assert last_stop() is stopped.value


def test_a_command_that_is_given_up_stops_with_the_code_and_reason_of_that() -> None:
    def wait_for_another_thread_that_gives_up() -> None:
        threading.Thread(target=give_up, args=(7, "too few nodes")).start()
        threading.Event().wait(60)

    with stoppable(), pytest.raises(Stop) as stopped:
        wait_for_another_thread_that_gives_up()
    assert (stopped.value.code, stopped.value.reason) == (7, "too few nodes")


def test_the_handlers_of_before_are_back_after_a_command(sigterm_is_noted: list[int]) -> None:
    with stoppable():
        pass
    signal.raise_signal(signal.SIGTERM)
    assert sigterm_is_noted == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
            with deferred():
                signal.raise_signal(signal.SIGINT)
            assert last_stop() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_is_put_off_to_the_end_of_a_block_whose_own_handlers_go_with_it() -> None:
    done = []

    def block() -> None:
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            done.append("the rest of the block")

    with stoppable(), pytest.raises(Stop) as stopped:
        block()
    assert done
    assert stopped.value.code == 143
