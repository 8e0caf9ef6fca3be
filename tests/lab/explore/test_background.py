import threading

import pytest

from redlab.lab.explore.panel import Background
from redlab.progress import progress


class Reader:
    """Somebody who notes what is said, and can wait for the last word."""

    def __init__(self):
        self.told, self.results, self.errors = [], [], []

    def listening(self):
        return {
            "report": lambda title, share: self.told.append((title, share)),
            "done": self.results.append,
            "failed": self.errors.append,
        }


@pytest.fixture
def reader():
    return Reader()


def test_the_result_is_delivered_and_what_is_done_is_told(reader):
    background = Background()
    background.start(lambda: sum(progress(range(5), "adding")), **reader.listening())
    background.thread.join(10)
    assert reader.results == [10]
    assert reader.told[0] == ("adding", 0.0)
    assert reader.errors == []


def test_an_error_is_delivered_too(reader):
    background = Background()
    background.start(lambda: 1 / 0, **reader.listening())
    background.thread.join(10)
    assert isinstance(reader.errors[0], ZeroDivisionError)
    assert reader.results == []


def test_cancelled_work_stops_at_its_next_step_and_is_never_heard_of(reader):
    background, begun, go_on, steps = Background(), threading.Event(), threading.Event(), []

    def work():
        for step in progress(range(1000), "counting"):
            steps.append(step)
            begun.set()
            go_on.wait(10)

    background.start(work, **reader.listening())
    assert begun.wait(10)
    background.cancel()
    go_on.set()
    background.thread.join(10)
    assert not background.thread.is_alive()
    assert steps == [0]
    assert (reader.results, reader.errors) == ([], [])


def test_work_that_cannot_be_stopped_is_not_heard_of_either(reader):
    background, begun, go_on = Background(), threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(10)
        return "old"

    background.start(work, **reader.listening())
    assert begun.wait(10)
    first = background.thread
    background.start(lambda: "new", **reader.listening())
    background.thread.join(10)
    go_on.set()
    first.join(10)
    assert reader.results == ["new"]


def test_a_watcher_belongs_to_its_thread(reader):
    background, seen = Background(), []
    background.start(lambda: list(progress(range(3), "there")), **reader.listening())
    seen += progress(range(3), "here")
    background.thread.join(10)
    assert seen == [0, 1, 2]
    assert {title for title, _ in reader.told} <= {"there"}
