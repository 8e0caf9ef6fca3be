"""Work that goes on while the reader goes on: one piece at a time, told as it proceeds, dropped when it is outdated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from redlab.progress import watched

_PAUSE = 0.1  # seconds between two words on how far it is


class _Outdated(Exception):
    """Ends the work from inside."""


class Background:
    """Runs one piece of work in a thread of its own; the next one, or ``cancel``, ends it at its next step.

    Steps are the items of every loop behind ``progress``: a layer that is hashed, a minibatch of images. What outdated
    work has to say is never delivered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current = 0
        self.thread: threading.Thread | None = None

    def start(
        self,
        work: Callable[[], Any],
        tell: Callable[[str, float], None],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Begin ``work``, in place of what goes on.

        Arguments:
            tell: is called now and then with what is done and the share of it that is behind.
            done: is called with the result, and ``failed`` with the error if there is one. All in the other thread.
        """
        self.cancel()
        number = self._current
        self.thread = threading.Thread(target=self._run, args=(number, work, tell, done, failed), daemon=True)
        self.thread.start()

    def cancel(self) -> None:
        """Drop what goes on; returns at once."""
        with self._lock:
            self._current += 1

    def _run(self, number: int, work: Callable, tell: Callable, done: Callable, failed: Callable) -> None:
        last = 0.0

        def watcher(title: str, share: float) -> None:
            nonlocal last
            if number != self._current:
                raise _Outdated
            if time.monotonic() - last > _PAUSE:
                last = time.monotonic()
                self._deliver(number, tell, title, share)

        try:
            with watched(watcher):
                result = work()
        except _Outdated:
            return
        except Exception as error:  # whatever it is, the reader is told
            self._deliver(number, failed, error)
        else:
            self._deliver(number, done, result)

    def _deliver(self, number: int, call: Callable, *arguments: Any) -> None:
        with self._lock:
            if number == self._current:
                call(*arguments)
