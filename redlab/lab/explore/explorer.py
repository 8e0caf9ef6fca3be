"""A figure and the choices that make it: redrawn when a slider moves, or drawn once, for paper."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from redlab.studies.plots.style import styled

if TYPE_CHECKING:
    from redlab.lab.explore.panel import Panel

Values = Mapping[str, Any]
_DPI = 96  # of figures on the screen
_MOST = 40  # options that a message lists: all layers of most networks, and not all channels


@dataclass(frozen=True)
class Choice:
    """One thing that may be chosen.

    Attributes:
        name: of the argument that it sets.
        label: what is shown, with its unit.
        options: what it may be, by what is written beside it, given the choices before it.
        slider: whether the options have an order that one slides along.
        prefer: which option to take where nothing else is said, given the choices before it; else the first.
        why_not: why something else is no option, in words, given the choices before it; "" where there is no more to
            say.
    """

    name: str
    label: str
    options: Callable[[Values], Mapping[str, Any]]
    slider: bool = False
    prefer: Callable[[Values], Any] | None = None
    why_not: Callable[[Any, Values], str] | None = None

    def pick(self, wanted: Any, before: Values) -> Any:
        """``wanted`` where it is one of the options, else what is preferred."""
        options = list(self.options(before).values())
        if wanted in options:
            return wanted
        return self.prefer(before) if self.prefer else options[0]

    def refused(self, asked: Any, before: Values) -> str:
        """The message for another value, given the choices before it."""
        reason = self.why_not(asked, before) if self.why_not else ""
        options = self.options(before)
        close = get_close_matches(asked, map(str, options.values()), n=1) if isinstance(asked, str) else []
        guess = f": {reason}." if reason else f". Did you mean {close[0]!r}?" if close else "."
        return f"{self.name} cannot be {asked!r}{guess} It can be {_listed(options)}"


class Explorer:
    """What ``explore_...`` and ``browse_...`` return: choices, and the figure that they make.

    As the last line of a cell it shows sliders in JupyterLab, and one line elsewhere: a notebook that a runner executes
    stores no sliders. ``figure`` draws the same figure once.

    Arguments:
        title: what is explored.
        choices: in an order in which each depends on those before it only.
        see: draws on a figure what the choices, its keyword arguments, make; returns it in words.
        start: by name what is chosen first; None leaves it to the choice.
        measure: what takes long and is done on demand, of the same keyword arguments; returns words.
        asks: what the button says that starts it.
        size: of the figure, inches.

    Raises:
        ValueError: ``start`` names an option that there is not.
    """

    def __init__(
        self,
        title: str,
        choices: Sequence[Choice],
        see: Callable[..., str],
        start: Values,
        measure: Callable[..., str] | None = None,
        asks: str = "Measure accuracy",
        size: tuple[float, float] = (9, 4),
    ):
        self.title, self.choices, self.see, self.measure = title, tuple(choices), see, measure
        self.asks, self.size = asks, size
        self.values = self.settle(start, [name for name, value in start.items() if value is not None])

    def settle(self, wanted: Values, strict: Collection[str] = ()) -> dict[str, Any]:
        """A value for each choice: as ``wanted``, unless an earlier choice rules that out.

        Raises:
            ValueError: where that is so for one of those called ``strict``; or there is no choice of that name.
        """
        names = [choice.name for choice in self.choices]
        if unknown := [name for name in strict if name not in names]:
            raise ValueError(f"there is no {unknown[0]!r} to choose, only {', '.join(names)}")
        values: dict[str, Any] = {}
        for choice in self.choices:
            asked, before = wanted.get(choice.name), dict(values)
            values[choice.name] = choice.pick(asked, before)
            if choice.name in strict and values[choice.name] != asked:
                raise ValueError(choice.refused(asked, before))
        return values

    def offered(self, values: Values) -> dict[str, dict[str, Any]]:
        """By the name of each choice its options, where those before it stand at ``values``."""
        before: dict[str, Any] = {}
        found = {}
        for choice in self.choices:
            found[choice.name] = dict(choice.options(before))
            before[choice.name] = values[choice.name]
        return found

    @styled
    def figure(self, **changes: Any) -> Figure:
        """The figure of the first values, or of other values of some choices, drawn once.

        Raises:
            ValueError: there is no such choice, or not that option.
        """
        figure = plt.figure(figsize=self.size)
        self.see(figure, **self.settle({**self.values, **changes}, changes))
        return figure

    @styled
    def png(self, values: Values) -> tuple[bytes, str]:
        """The figure of ``values``, one for each choice, as a PNG; and its result in words."""
        figure, image = Figure(figsize=self.size), BytesIO()
        words = self.see(figure, **values)
        figure.savefig(image, dpi=_DPI)
        return image.getvalue(), words

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of ``png``."""
        width, height = self.size
        return round(width * _DPI), round(height * _DPI)

    @cached_property
    def panel(self) -> Panel:
        """The sliders and the figure, live."""
        from redlab.lab.explore.panel import Panel

        return Panel(self)

    def __repr__(self) -> str:
        what = ", ".join(choice.label.split(",")[0] for choice in self.choices)
        return f"{self.title}: live in JupyterLab (redlab lab), where one chooses {what}."

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        if is_live():
            # The text is shown where the notebook is opened without its kernel.
            return {**self.panel.view._repr_mimebundle_(**options), "text/plain": repr(self)}
        return {"text/plain": repr(self)}


def is_live() -> bool:
    """Whether sliders can be moved: in a kernel that no runner started."""
    return "ipykernel" in sys.modules and "REDLAB_OUT" not in os.environ


def _listed(options: Mapping[str, Any]) -> str:
    """The options as an argument names them; of very many the first ones and the last."""
    said = [str(value) if str(value) == label else f"{value} ({label})" for label, value in options.items()]
    return ", ".join(said if len(said) <= _MOST else [*said[: _MOST // 2], "...", said[-1]])
