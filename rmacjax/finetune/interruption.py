"""Ctrl-C at moments when it would do harm."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["undisturbed", "without_ctrl_c"]


@contextmanager
def undisturbed(*, then_go_on: bool = False) -> Iterator[None]:
    """Let Ctrl-C wait until this is done: half a read or write looks like a damaged file.

    What goes wrong meanwhile goes before it: then Ctrl-C is dropped.

    Args:
        then_go_on: whether what came meanwhile is dropped, not done afterwards.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # signals come to the main thread, and here nobody answers them
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and not then_go_on:
        before(signal.SIGINT, None)


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Processes that are started here leave Ctrl-C to this one, from their first moment on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    with undisturbed():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
