"""Ctrl-C, and SIGTERM as a batch system sends it before the time is over: both end a command, a second one at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a command as Ctrl-C does."""


@contextmanager
def interruptions() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM unwinds the command, so that workers end; a second one leaves at once."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    stops: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stops.append(number)
        if len(stops) > 1:
            leave(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    finally:
        if not stops:  # else the process is about to end, and must not end twice
            for number, handler in before.items():
                signal.signal(number, handler)


def leave(number: int) -> None:
    """End this process now, as a signal does. Its workers notice and end too; files are whole or not there."""
    os._exit(128 + number)


class HeldBack:
    """A block in which Ctrl-C and SIGTERM wait for `answer()`, or for the block's end; a second one leaves at once.

    prepare: called before the answer, such as to save. In other threads than the main one nothing can be held back, and
    what the caller ignores stays ignored.
    """

    def __init__(self, prepare: Callable[[], None] = lambda: None):
        self.prepare = prepare
        self.asked: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "HeldBack":
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                    self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            leave(number)
        self.asked = number

    def answer(self) -> None:
        """Do what the signal asks for, where one has come: as a rule that raises KeyboardInterrupt."""
        if self.asked is not None:
            self.prepare()
            number, self.asked = self.asked, None
            self.release()
            signal.raise_signal(number)
            self.__enter__()  # the caller goes on

    def release(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.answer()
        finally:
            self.release()
