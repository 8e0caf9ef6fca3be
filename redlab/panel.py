"""The live side of an explorer: its choices as sliders and menus, its picture drawn anew at every step."""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from html import escape
from typing import Any

import ipywidgets

from redlab.background import Background
from redlab.explorer import Choice, Explorer
from redlab.progress import watched

# What choices may lead to that is no mistake of ours: weights that are not there, NaN among them, no memory.
_REFUSED = (ValueError, TypeError, OSError, RuntimeError, MemoryError)


class Panel:
    """One explorer's widgets; ``view`` holds them all.

    Whatever moves ends the measurement that goes on, for its answer would be that to another question.
    """

    def __init__(self, explorer: Explorer):
        self.explorer, self.values = explorer, dict(explorer.values)
        offered = explorer.offered(self.values)
        self.inputs = {choice.name: self._input(choice, offered[choice.name]) for choice in explorer.choices}
        self.picture, self.words, self.outcome = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.background, self._offering = Background(), False
        rows = [*self.inputs.values(), self.words, self.picture]
        if explorer.measure:
            button = ipywidgets.Button(description=explorer.asks, layout={"width": "auto"})
            button.on_click(lambda _: self.measure())
            rows.insert(len(self.inputs), ipywidgets.HBox([button, self.outcome]))
        self.view = ipywidgets.VBox(rows)
        self.show(self.values)

    def show(self, wanted: dict[str, Any]) -> None:
        """Draw what ``wanted`` makes; where that is refused, say why and stay where we are."""
        self.background.cancel()
        self.outcome.value = ""
        try:
            with watched(_silent):
                values = self.explorer.settle(wanted)
                image, words = self.explorer.png(values)
        except _REFUSED as error:
            self._offer()
            self.words.value = _alert(error)
            return
        self.values = values
        self._offer()
        self.words.value = f'<div role="status">{escape(words)}</div>'
        source = b64encode(image).decode()
        self.picture.value = f'<img alt="{escape(words)}" src="data:image/png;base64,{source}">'

    def measure(self) -> None:
        """Begin what takes long."""
        if (measure := self.explorer.measure) is None:
            return
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
        made = kind(
            options=list(options.items()),
            value=self.values[choice.name],
            description=choice.label,
            style={"description_width": "16em"},
            layout={"width": "42em"},
        )
        made.observe(lambda change: self._moved(choice.name, change["new"]), "value")
        return made

    def _moved(self, name: str, value: Any) -> None:
        if not self._offering:
            self.show({**self.values, name: value})

    def _offer(self) -> None:
        """Let every input offer what the values before it allow, and stand at its own."""
        self._offering = True
        for name, options in self.explorer.offered(self.values).items():
            made = self.inputs[name]
            if made.options != tuple(options.items()):
                made.options = tuple(options.items())
            made.value = self.values[name]
        self._offering = False


def _silent(title: str, share: float) -> None:
    """No bars beside the sliders."""


def _alert(error: Exception) -> str:
    return f'<div role="alert" style="color: #b3261e">{escape(str(error))}</div>'
