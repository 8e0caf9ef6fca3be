"""The live side of an explorer: sliders and menus beside a figure that is redrawn at every step."""

from __future__ import annotations

import threading
import time
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets

from redlab.progress import watched

if TYPE_CHECKING:
    from redlab.lab.explore.explorer import Choice, Explorer

_PAUSE = 0.1  # seconds between two reports
_STYLE = """<style>
/* The controls stand beside the figure, each below its label; in a narrow window the figure is below them. */
.redlab-panel { flex-flow: row wrap; align-items: flex-start; gap: 1em; }
.redlab-controls { flex: 0 0 19em; }
.redlab-figure { flex: 1 1 28em; min-width: 0; }
.redlab-figure img { max-width: 100%; height: auto; }
.redlab-controls .widget-inline-hbox { flex-flow: column; align-items: stretch; width: auto; height: auto; }
.redlab-controls .widget-inline-hbox > * { flex: none; width: auto; max-width: 100%; text-align: left; }
.redlab-controls .widget-label { white-space: normal; height: auto; line-height: 1.4; }
.redlab-controls .slider-container { margin: 0.4em 0.6em 0; }
.redlab-controls .widget-readout { pointer-events: none; }
</style>"""


class _Outdated(Exception):
    """Ends the work from inside."""


class Background:
    """Runs one piece of work in its own thread; the next one, or ``cancel``, ends it at its next step.

    Steps are the items of every loop behind ``progress``: a layer that is hashed, a minibatch of images. Results of
    outdated work are dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current = 0
        self.thread: threading.Thread | None = None

    def start(
        self,
        work: Callable[[], Any],
        report: Callable[[str, float], None],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Begin ``work`` and cancel the work before it.

        Arguments:
            report: called now and then with the title of a loop and the share that is done.
            done: called with the result; ``failed`` is called with an error. All are called in the other thread.
        """
        self.cancel()
        number = self._current
        self.thread = threading.Thread(target=self._run, args=(number, work, report, done, failed), daemon=True)
        self.thread.start()

    def cancel(self) -> None:
        """Cancel the work; returns at once."""
        with self._lock:
            self._current += 1

    def _run(self, number: int, work: Callable, report: Callable, done: Callable, failed: Callable) -> None:
        last = 0.0

        def watcher(title: str, share: float) -> None:
            nonlocal last
            if number != self._current:
                raise _Outdated
            if time.monotonic() - last > _PAUSE:
                last = time.monotonic()
                self._deliver(number, report, title, share)

        try:
            with watched(watcher):
                result = work()
        except _Outdated:
            return
        except Exception as error:  # any error: it is shown
            self._deliver(number, failed, error)
        else:
            self._deliver(number, done, result)

    def _deliver(self, number: int, call: Callable, *arguments: Any) -> None:
        with self._lock:
            if number == self._current:
                call(*arguments)


class Panel:
    """One explorer's widgets; ``view`` holds them all.

    A move of any control cancels the measurement, whose answer would be outdated. JupyterLab may report controls in
    several threads: they take turns.
    """

    def __init__(self, explorer: Explorer):
        self.explorer, self.values = explorer, dict(explorer.values)
        offered = explorer.offered(self.values)
        self.inputs = {choice.name: self._input(choice, offered[choice.name]) for choice in explorer.choices}
        self.picture, self.words, self.outcome = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.background, self._offering, self._turn = Background(), False, threading.RLock()
        style = ipywidgets.HTML(_STYLE, layout={"display": "none"})
        controls = ipywidgets.VBox([*self.inputs.values(), *self._button(), style])
        figure = ipywidgets.VBox([self.picture, self.words])
        boxes = [controls.add_class("redlab-controls"), figure.add_class("redlab-figure")]
        self.view = ipywidgets.HBox(boxes).add_class("redlab-panel")
        self.show(self.values)

    def show(self, wanted: dict[str, Any]) -> None:
        """Draw ``wanted``; if it is refused, say why and keep the figure and the choices."""
        self.background.cancel()
        self.outcome.value = ""
        try:
            with watched(lambda title, share: None):  # no bars beside the sliders
                values = self.explorer.settle(wanted)
                image, words = self.explorer.png(values)
        except Exception as error:  # any error: one that a slider raises is not shown
            self._offer(wanted)
            self.words.value = _alert(error)
            return
        self.values = values
        self._offer(wanted)
        self.words.value = f'<div role="status">{escape(words)}</div>'
        width, height = self.explorer.pixels  # fixed, so that the text below does not jump while the next one loads
        source = f"data:image/png;base64,{b64encode(image).decode()}"
        alt = escape(f"{self._where()}: {words}")
        self.picture.value = f'<img alt="{alt}" width="{width}" height="{height}" src="{source}">'

    def _where(self) -> str:
        """The figure and the choices in words, for readers who cannot see them."""
        inputs = (f"{made.description} {made.options[made.index][0]}" for made in self.inputs.values())
        return f"{self.explorer.title}, {', '.join(inputs)}"

    def _button(self) -> list[ipywidgets.Widget]:
        """The button that measures, and the place of its answer; nothing where there is nothing to measure."""
        if self.explorer.measure is None:
            return []
        button = ipywidgets.Button(description=self.explorer.asks, layout={"width": "auto"})
        button.on_click(lambda _: self.measure())
        return [ipywidgets.VBox([button, self.outcome])]

    def measure(self) -> None:
        """Begin the measurement."""
        if (measure := self.explorer.measure) is None:
            return
        with self._turn:
            self.outcome.value = "measuring …"
            self.background.start(
                partial(measure, **self.values),
                report=lambda title, share: self._say(f"measuring … {escape(title)}, {share:.0%}"),
                done=lambda words: self._say(f'<span role="status">{escape(words)}</span>'),
                failed=lambda error: self._say(_alert(error)),
            )

    def _say(self, html: str) -> None:
        self.outcome.value = html

    def _input(self, choice: Choice, options: dict[str, Any]) -> ipywidgets.Widget:
        made = (ipywidgets.SelectionSlider if choice.slider else ipywidgets.Dropdown)(
            options=_pairs(choice, options),
            value=self.values[choice.name],
            description=choice.label,
            tooltip=choice.label,  # or it would be "null"
            style={"description_width": "auto"},
        )
        made.observe(lambda change: self._moved(choice.name, change["new"]), "value")
        return made

    def _moved(self, name: str, value: Any) -> None:
        with self._turn:
            if not self._offering:
                self.show({**self.values, name: value})

    def _offer(self, wanted: dict[str, Any]) -> None:
        """Update the options and the value of every input.

        An input that is up to date is left alone: it may have moved again, and waits for its turn.
        """
        self._offering = True
        offered = self.explorer.offered(self.values)
        for choice in self.explorer.choices:
            made, value = self.inputs[choice.name], self.values[choice.name]
            options = _pairs(choice, offered[choice.name])
            if made.options != options:
                made.index = 0  # a slider beyond its new end would move there, and report a move
                made.options = options
                made.value = value
            elif wanted[choice.name] != value:
                made.value = value
        self._offering = False


def _pairs(choice: Choice, options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    pairs = tuple(options.items())
    # A slider of one option is an error in the browser; one of twice the same option works.
    return pairs * 2 if choice.slider and len(pairs) == 1 else pairs


def _alert(error: Exception) -> str:
    return f'<div role="alert" style="color: #b3261e">{escape(f"{type(error).__name__}: {error}")}</div>'
