"""What an explorer promises whatever it explores."""

from __future__ import annotations

import threading
from io import BytesIO

import pytest

from redlab.lab.explore.explorer import Choice, Explorer
from redlab.lab.explore.panel import Panel
from redlab.progress import progress


def numbers(*options):
    return {str(option): option for option in options}


def see(figure, start, step):
    figure.add_subplot().plot([start, start + step])
    return f"from {start} by {step}"


def explorer(see=see, measure=None, **start):
    """Steps depend on where one starts: there are as many as that."""
    choices = [
        Choice("start", "start", lambda _: numbers(1, 2, 3, 9)),
        Choice("step", "step", lambda at: numbers(*range(1, at["start"] + 1)), slider=True),
    ]
    return Explorer("Numbers", choices, see, {"start": 2, **start}, measure)


def test_what_is_not_said_is_the_first_option_or_what_is_preferred():
    assert explorer().values == {"start": 2, "step": 1}
    choices = [Choice("start", "start", lambda _: numbers(1, 2, 3), prefer=lambda _: 3)]
    assert Explorer("Numbers", choices, see, {}).values == {"start": 3}


def test_an_option_that_there_is_not_is_refused_by_name():
    with pytest.raises(ValueError, match=r"step cannot be 3\. .*It can be 1, 2$"):
        explorer(step=3)
    with pytest.raises(ValueError, match="there is no 'stop' to choose, only start, step"):
        explorer(stop=1)
    with pytest.raises(ValueError, match="step cannot be 3"):
        explorer().figure(step=3)


def test_an_earlier_choice_rules_out_later_ones():
    found = explorer(step=2)
    assert found.settle({"start": 9, "step": 2}) == {"start": 9, "step": 2}
    assert found.settle({"start": 1, "step": 2}) == {"start": 1, "step": 1}


def test_the_picture_on_paper_is_the_live_one():
    found, image = explorer(), BytesIO()
    found.figure(start=3).savefig(image, dpi=96)
    assert found.png({"start": 3, "step": 1}) == (image.getvalue(), "from 3 by 1")


def test_a_runner_gets_a_line_and_makes_no_widget(monkeypatch, tmp_path):
    monkeypatch.setenv("REDLAB_OUT", str(tmp_path))  # even where another test has imported ipykernel
    found = explorer()
    assert found._repr_mimebundle_() == {"text/plain": repr(found)}
    assert "redlab lab" in repr(found)
    assert "start, step" in repr(found)
    assert "panel" not in vars(found)


def test_a_step_of_a_slider_draws_anew_and_says_what():
    panel = Panel(explorer())
    before = panel.picture.value
    panel.inputs["step"].value = 2
    assert panel.picture.value != before
    assert 'alt="Numbers, start 2, step 2: from 2 by 2"' in panel.picture.value
    assert "from 2 by 2" in panel.words.value
    assert 'role="status"' in panel.words.value


def test_a_menu_changes_what_the_next_one_offers():
    panel = Panel(explorer(step=2))
    panel.inputs["start"].value = 1
    assert dict(panel.inputs["step"].options) == numbers(1)
    assert (panel.inputs["step"].value, panel.values) == (1, {"start": 1, "step": 1})
    panel.inputs["start"].value = 9
    assert len(panel.inputs["step"].options) == 9
    assert "from 9 by 1" in panel.words.value


def test_each_move_draws_once():
    drawn = []

    def counted(figure, **values):
        drawn.append(values)
        return see(figure, **values)

    panel = Panel(explorer(counted, step=2))
    drawn.clear()
    panel.inputs["start"].value = 1
    assert drawn == [{"start": 1, "step": 1}]


def test_what_is_refused_is_said_and_the_last_picture_stays():
    def fragile(figure, start, step):
        if start == 3:
            raise ValueError("<three> is not to be had")
        return see(figure, start, step)

    panel = Panel(explorer(fragile))
    before = panel.picture.value
    panel.inputs["start"].value = 3
    assert "&lt;three&gt; is not to be had" in panel.words.value
    assert 'role="alert"' in panel.words.value
    assert (panel.inputs["start"].value, panel.picture.value) == (2, before)
    panel.inputs["start"].value = 9
    assert "from 9 by 1" in panel.words.value


def test_a_measurement_is_shown_when_it_is_there():
    panel = Panel(explorer(measure=lambda start, step: f"{start + step} %"))
    panel.measure()
    panel.background.thread.join(10)
    assert "3 %" in panel.outcome.value


def test_moving_on_cancels_the_measurement():
    begun, go_on, steps = threading.Event(), threading.Event(), []

    def measure(start, step):
        for number in progress(range(1000), "measuring"):
            steps.append(number)
            begun.set()
            go_on.wait(10)
        return "stale"

    panel = Panel(explorer(measure=measure))
    panel.measure()
    assert begun.wait(10)
    assert "measuring" in panel.outcome.value
    panel.inputs["step"].value = 2  # answers at once, though the measurement goes on
    assert "from 2 by 2" in panel.words.value
    go_on.set()
    panel.background.thread.join(10)
    assert steps == [0]
    assert panel.outcome.value == ""


def test_a_measurement_that_fails_says_why():
    def measure(start, step):
        raise ValueError("no images")

    panel = Panel(explorer(measure=measure))
    panel.measure()
    panel.background.thread.join(10)
    assert "no images" in panel.outcome.value


def test_a_slider_of_one_option_has_two_ends_as_the_browser_demands():
    panel = Panel(explorer(start=1))
    assert panel.inputs["step"].options == (("1", 1), ("1", 1))
    panel.inputs["step"].index = 1
    assert panel.values == {"start": 1, "step": 1}


def test_what_moves_in_another_thread_waits_for_its_turn_and_is_not_lost():
    drawing, go_on = threading.Event(), threading.Event()

    def slow(figure, start, step):
        if (start, step) == (3, 2):
            drawing.set()
            go_on.wait(10)
        return see(figure, start, step)

    panel = Panel(explorer(slow, start=3))
    first = threading.Thread(target=lambda: setattr(panel.inputs["step"], "value", 2))
    second = threading.Thread(target=lambda: setattr(panel.inputs["start"], "value", 9))
    first.start()
    assert drawing.wait(10)
    second.start()
    go_on.set()
    first.join(10)
    second.join(10)
    assert panel.values == {"start": 9, "step": 2} == {name: made.value for name, made in panel.inputs.items()}
    assert "from 9 by 2" in panel.words.value


def test_whatever_goes_wrong_is_said_by_its_name():
    def broken(figure, start, step):
        return {1: "one", 2: "two"}[start]

    panel = Panel(explorer(broken))
    panel.inputs["start"].value = 9
    assert "KeyError: 9" in panel.words.value
    assert panel.inputs["start"].value == 2
