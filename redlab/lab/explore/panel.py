"""The live side of an explorer: its choices as sliders and menus, its picture drawn anew at every step."""

from __future__ import annotations

import threading
from base64 import b64encode
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets

from redlab.lab.explore.background import Background
from redlab.progress import watched

if TYPE_CHECKING:
    from redlab.lab.explore.explorer import Choice, Explorer

_STYLE = """<style>
/* As wide for the longest value as for the shortest: a slider must not shrink under the hand that drags it. */
.redlab-panel .widget-readout { width: 9em; flex: none; text-align: left; pointer-events: none; }
.redlab-panel img { max-width: 100%; height: auto; }
</style>"""


class Panel:
    """One explorer's widgets; ``view`` holds them all.

    Whatever moves ends the measurement that goes on, for its answer would be that to another question. JupyterLab may
    tell of one control in one thread and of the next in another: they take turns.
    """

    def __init__(self, explorer: Explorer):
        self.explorer, self.values = explorer, dict(explorer.values)
        offered = explorer.offered(self.values)
        self.inputs = {choice.name: self._input(choice, offered[choice.name]) for choice in explorer.choices}
        self.picture, self.words, self.outcome = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.background, self._offering, self._turn = Background(), False, threading.RLock()
        rows = [*self.inputs.values(), self.words, self.picture, _hidden(_STYLE)]
        if explorer.measure:
            button = ipywidgets.Button(description=explorer.asks, layout={"width": "auto"})
            button.on_click(lambda _: self.measure())
            rows.insert(len(self.inputs), ipywidgets.HBox([button, self.outcome]))
        self.view = ipywidgets.VBox(rows).add_class("redlab-panel")
        self.show(self.values)

    def show(self, wanted: dict[str, Any]) -> None:
        """Draw what ``wanted`` makes; where that is refused, say why and stay where we are."""
        self.background.cancel()
        self.outcome.value = ""
        try:
            with watched(_silent):
                values = self.explorer.settle(wanted)
                image, words = self.explorer.png(values)
        except Exception as error:  # whatever it is: nobody would see what is raised out of a slider
            self._offer(wanted)
            self.words.value = _alert(error)
            return
        self.values = values
        self._offer(wanted)
        self.words.value = f'<div role="status">{escape(words)}</div>'
        width, height = self.explorer.pixels  # said, so that what is below does not jump while the next one loads
        source = f"data:image/png;base64,{b64encode(image).decode()}"
        alt = escape(f"{self._where()}: {words}")
        self.picture.value = f'<img alt="{alt}" width="{width}" height="{height}" src="{source}">'

    def _where(self) -> str:
        """What is seen, for those who see neither the picture nor where the sliders stand."""
        inputs = (f"{made.description} {made.options[made.index][0]}" for made in self.inputs.values())
        return f"{self.explorer.title}, {', '.join(inputs)}"

    def measure(self) -> None:
        """Begin what takes long."""
        if (measure := self.explorer.measure) is None:
            return
        with self._turn:
            self.outcome.value = "measuring …"
            self.background.start(
                partial(measure, **self.values),
                tell=lambda title, share: self._say(f"measuring … {escape(title)}, {share:.0%}"),
                done=lambda words: self._say(f'<span role="status">{escape(words)}</span>'),
                failed=lambda error: self._say(_alert(error)),
            )

    def _say(self, html: str) -> None:
        self.outcome.value = html

    def _input(self, choice: Choice, options: dict[str, Any]) -> ipywidgets.Widget:
        kind = ipywidgets.SelectionSlider if choice.slider else ipywidgets.Dropdown
        label = max(len(other.label) for other in self.explorer.choices)
        made = kind(
            options=_pairs(choice, options),
            value=self.values[choice.name],
            description=choice.label,
            tooltip=choice.label,  # or it would be "null"
            style={"description_width": f"{label}ch"},
            layout={"width": f"calc({label}ch + 30em)", "max_width": "100%"},
        )
        made.observe(lambda change: self._moved(choice.name, change["new"]), "value")
        return made

    def _moved(self, name: str, value: Any) -> None:
        with self._turn:
            if not self._offering:
                self.show({**self.values, name: value})

    def _offer(self, wanted: dict[str, Any]) -> None:
        """Let every input offer what the values before it allow, and stand at its own.

        One that already does is left alone: it may have been moved again meanwhile, and waits for its turn.
        """
        self._offering = True
        offered = self.explorer.offered(self.values)
        for choice in self.explorer.choices:
            made, value = self.inputs[choice.name], self.values[choice.name]
            options = _pairs(choice, offered[choice.name])
            if made.options != options:
                made.index = 0  # a slider that stands beyond its new end would move there, and tell us so
                made.options = options
                made.value = value
            elif wanted[choice.name] != value:
                made.value = value
        self._offering = False


def _pairs(choice: Choice, options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    pairs = tuple(options.items())
    # A slider of one option is an error in the browser; one of twice the same goes nowhere.
    return pairs * 2 if choice.slider and len(pairs) == 1 else pairs


def _hidden(html: str) -> ipywidgets.HTML:
    return ipywidgets.HTML(html, layout={"display": "none"})


def _silent(title: str, share: float) -> None:
    """No bars beside the sliders."""


def _alert(error: Exception) -> str:
    return f'<div role="alert" style="color: #b3261e">{escape(f"{type(error).__name__}: {error}")}</div>'
