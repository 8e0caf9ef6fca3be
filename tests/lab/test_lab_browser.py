"""Notebooks and their sliders as somebody uses them: JupyterLab in Chromium, by keyboard and by mouse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
from chromium import chromium_options, find_chromium
from nbformat import v4
from servers import free_port, lab

from redlab.lab.notebooks import list_notebooks
from redlab.paths import checkout

pytestmark = pytest.mark.ui
SHOTS = checkout() / "build" / "screenshots" / "lab"
EXPLORERS = ("density", "hashing", "merging", "splitting")
BROKEN = "imagenet/mobilenet_v1_0.75"

RUN_ALL = """async () => {
    await jupyterapp.commands.execute('notebook:run-all-cells');
    return jupyterapp.shell.currentWidget.content.model.toJSON().cells.filter(cell => cell.cell_type == 'code');
}"""
# A cell that is off the screen may have no elements: it is made the active one and scrolled to.
GO_TO = """async number => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = notebook.widgets.findIndex(cell => cell.model.executionCount == number);
    await notebook.scrollToItem(notebook.activeCellIndex, 'start');
}"""
# Every label of a panel with the value that is shown beside it.
SHOWN = """panel => [...panel.querySelectorAll('.widget-slider, .widget-dropdown')].map(row => [
    row.querySelector('.widget-label').textContent,
    row.querySelector('select')?.value ?? row.querySelector('.widget-readout').textContent,
])"""
# The words of a picture begin with its title and all of these.
IN_STEP = f"""panel => {{
    const values = ({SHOWN})(panel).map(pair => pair.join(' ')).join(', ');
    return panel.querySelector('img')?.alt.includes(`, ${{values}}:`);
}}"""
TOO_WIDE = """panel =>
    [panel, ...panel.querySelectorAll('.widget-label, .widget-readout, .widget-html-content, button')]
    .filter(own => own.scrollWidth > own.clientWidth).map(own => own.textContent)"""
# Chromium shows a select by its own means; what its text needs is measured by that text in a span.
CUT_OFF = """panel => [...panel.querySelectorAll('select')].flatMap(select => {
    const probe = panel.appendChild(document.createElement('span'));
    probe.style = `position: absolute; white-space: pre; font: ${getComputedStyle(select).font}`;
    const wide = [...select.options].filter(option => {
        probe.textContent = option.textContent;
        return probe.offsetWidth > select.clientWidth - 24;
    });
    probe.remove();
    return wide.map(option => option.textContent);
})"""
RECORD = """button => {
    const beside = button.parentElement;
    const said = window.said = [];
    new MutationObserver(() => said.push(beside.innerText)).observe(beside, {childList: true, subtree: true});
}"""

# Presses within the page: by way of the driver the answer might be there before the move.
PRESS_WHILE_MEASURING = """(handle, [button, key]) => new Promise(done => {
    const beside = button.parentElement;
    const watch = new MutationObserver(() => {
        if (!beside.innerText.includes('measuring')) return;
        watch.disconnect();
        handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
        done();
    });
    watch.observe(beside, {childList: true, subtree: true});
    button.click();
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-ui installs it")
    try:
        program = find_chromium()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=chromium_options())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of a lab in a copy of the checkout: JupyterLab saves what it executes, and notebooks write figures."""
    copy = tmp_path_factory.mktemp("lab") / "redlab"
    for folder in ("redlab", "notebooks", "data/digits", "benchmarks"):
        shutil.copytree(checkout() / folder, copy / folder)  # with __pycache__, where what numba compiled is
    for path in copy.glob("notebooks/*.ipynb"):
        _make_quick(path)
    _write_panels(copy / "notebooks" / "panels.ipynb")
    broken = copy / "data" / "cache" / "weights" / "imagenet" / "mobilenet_v1_0.75_224.pth"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not weights")
    with lab(copy, copy.parent, "--expose-app-in-browser", "--port", str(free_port())) as found:
        yield found


def _make_quick(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert "quick = False" in cell.source
    cell.source = cell.source.replace("quick = False", "quick = True")
    nbformat.write(notebook, path)


def _write_panels(path: Path) -> None:
    cells = [f"from redlab import explore_{name}\nexplore_{name}()" for name in EXPLORERS]
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)


class Sheet:
    """A notebook in a tab of JupyterLab, with what the browser asked for and complained of."""

    def __init__(self, browser: Any, address: str, name: str):
        self.page, self.name = browser.new_page(viewport={"width": 1400, "height": 1400}), name
        self.asked: list[str] = []
        self.complained: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on("console", lambda said: said.type == "error" and self.complained.append(said.text))
        self.page.on("pageerror", lambda error: self.complained.append(str(error)))
        base, _, token = address.partition("?token=")
        self.page.goto(f"{base.split('/lab')[0]}/lab/tree/{name}.ipynb?token={token}&reset")
        self.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady", timeout=60_000)
        self.cells = self.page.evaluate(RUN_ALL)

    def failures(self) -> list[str]:
        outputs = [output for cell in self.cells for output in cell["outputs"]]
        return [f"{own['ename']}: {own['evalue']}" for own in outputs if own["output_type"] == "error"]

    def panels(self) -> Iterator[Any]:
        """Every output with sliders, on the screen one after the other."""
        for cell in self.cells:
            if any(map(_is_explorer, cell["outputs"])):
                self.page.evaluate(GO_TO, cell["execution_count"])
                outputs = self.page.locator(".jp-Cell.jp-mod-active .jp-OutputArea-output")
                panels = outputs.filter(has=self.page.locator(".noUi-handle"))
                panels.first.wait_for()
                yield from panels.all()

    def close(self) -> None:
        self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()


def _is_explorer(output: dict[str, Any]) -> bool:
    """By its words: a bar that has run its course is a widget too, which is no longer there."""
    return "live in JupyterLab" in "".join(output.get("data", {}).get("text/plain", ""))


@pytest.fixture
def sheet(browser, address, request) -> Iterator[Sheet]:
    sheet = Sheet(browser, address, request.param)
    yield sheet
    sheet.close()


@pytest.mark.parametrize("sheet", ["panels", *list_notebooks()], indirect=True)
def test_every_cell_runs_and_every_control_works(sheet):
    assert sheet.failures() == []
    assert all(cell["execution_count"] for cell in sheet.cells if "".join(cell["source"]).strip())
    panels = 0
    for panels, panel in enumerate(sheet.panels(), 1):
        _use(panel, every_option=sheet.name == "panels")
        panel.screenshot(path=SHOTS / f"{sheet.name}-{panels}.png")
    if sheet.name == "panels":
        assert panels == len(EXPLORERS)
    assert sheet.complained == []
    assert not sheet.page.locator(".Toastify__toast").count()  # nothing asks, nothing warns
    hosts = {urlsplit(url).hostname for url in sheet.asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


@pytest.mark.parametrize("sheet", ["panels"], indirect=True)
def test_a_network_that_cannot_be_read_is_said_and_the_last_picture_stays(sheet):
    panel = next(sheet.panels())
    before = _in_step(panel)
    network = panel.get_by_label("network")
    name = network.input_value()
    network.select_option(BROKEN)
    panel.get_by_role("alert").wait_for()
    assert panel.get_by_role("alert").inner_text().strip()
    panel.screenshot(path=SHOTS / "broken.png")
    sheet.page.wait_for_function("([select, name]) => select.value == name", arg=[network.element_handle(), name])
    assert (panel.locator("img").get_attribute("alt"), panel.locator("img").get_attribute("src")) == before
    panel.locator(".noUi-handle").first.press("ArrowRight")
    assert _in_step(panel)[0] != before[0]
    assert sheet.complained == []


def _use(panel: Any, every_option: bool) -> None:
    """All that one can do with a panel."""
    _in_step(panel)
    assert panel.evaluate(TOO_WIDE) == []
    assert panel.evaluate(CUT_OFF) == []
    controls, figure = (panel.locator(f".redlab-{part}").bounding_box() for part in ("controls", "figure"))
    assert figure["x"] >= controls["x"] + controls["width"]  # beside the controls,
    assert abs(figure["y"] - controls["y"]) < 20  # not below them
    _tab_through(panel)
    drawn = [_slide_by_key(panel, own) + _slide_by_mouse(panel, own) for own in panel.locator(".widget-slider").all()]
    # A slider may belong to another option of a menu than the one it stands at; not so in our own notebook.
    assert all(drawn) if every_option else any(drawn)
    for menu in panel.locator("select").all():
        _choose(panel, menu, every_option)
    if panel.locator("button").count():
        _measure_and_move_on(panel)
        _measure(panel)


def _in_step(panel: Any) -> tuple[str, str]:
    """Wait until the picture is that of the values shown: its words and its source."""
    page = panel.page
    page.wait_for_function(IN_STEP, arg=panel.element_handle(), polling=30, timeout=20_000)
    assert panel.get_by_role("alert").all_inner_texts() == []
    picture = panel.locator("img")
    return picture.get_attribute("alt"), picture.get_attribute("src")


def _tab_through(panel: Any) -> None:
    """From the first control on, the key Tab comes to each of them in turn."""
    controls = panel.locator("select, .noUi-handle, button")
    controls.first.focus()
    for control in controls.all():
        for _ in range(2):  # a slider's readout is a stop of its own
            if control.evaluate("own => own == document.activeElement"):
                break
            panel.page.keyboard.press("Tab")
        assert control.evaluate("own => own == document.activeElement")


def _range(slider: Any) -> tuple[float, float]:
    handle = slider.locator(".noUi-handle")
    return tuple(float(handle.get_attribute(f"aria-value{name}")) for name in ("now", "max"))


def _slide_by_key(panel: Any, slider: Any) -> bool:
    """Each press changes the value and the words; whether the picture followed before the end was reached."""
    (now, last), readout = _range(slider), slider.locator(".widget-readout")
    key, steps = ("ArrowRight", last - now) if now < last else ("ArrowLeft", now)
    words, first = _in_step(panel)
    slider.locator(".noUi-handle").focus()
    for _ in range(int(steps)):
        value, before = readout.inner_text(), words
        slider.page.keyboard.press(key)
        assert readout.inner_text() != value
        words, picture = _in_step(panel)
        assert words != before
        if picture != first:
            return True
    return False


def _slide_by_mouse(panel: Any, slider: Any) -> bool:
    """Dragged over its length and back a bit: the picture that is left is that of where it was dropped."""
    now, last = _range(slider)
    value, before = slider.locator(".widget-readout").inner_text(), _in_step(panel)
    base, handle = slider.locator(".noUi-base").bounding_box(), slider.locator(".noUi-handle").bounding_box()
    middle = handle["y"] + handle["height"] / 2
    mouse = panel.page.mouse
    mouse.move(handle["x"] + handle["width"] / 2, middle)
    mouse.down()
    there, back = (0.98, 0.8) if now < last / 2 else (0.02, 0.2)
    mouse.move(base["x"] + there * base["width"], middle, steps=20)
    mouse.move(base["x"] + back * base["width"], middle, steps=10)
    mouse.up()
    assert slider.locator(".widget-readout").inner_text() != value
    after = _in_step(panel)
    assert after[0] != before[0]
    return after[1] != before[1]


def _choose(panel: Any, menu: Any, every_option: bool) -> None:
    """Other options, the broken network apart, and the first one last."""
    names = [option.get_attribute("value") for option in menu.locator("option").all()]
    others = names[1:] if every_option else names[1:2]
    for name in [*others, names[0]]:
        if name != BROKEN:
            menu.select_option(name)
            words, _ = _in_step(panel)
            assert name in words


def _measure(panel: Any) -> None:
    button = panel.get_by_role("button")
    button.evaluate(RECORD)
    button.click()
    panel.page.wait_for_function("said.at(-1)?.includes('accuracy ') && !said.at(-1).includes('measuring')")
    said = panel.page.evaluate("said")
    assert any("measuring" in text for text in said)


def _measure_and_move_on(panel: Any) -> None:
    """What was asked before the move is not answered once the picture is that after it."""
    button, slider = panel.get_by_role("button"), panel.locator(".widget-slider").first
    now, last = _range(slider)
    before = _in_step(panel)
    keys = [button.element_handle(), "ArrowRight" if now < last else "ArrowLeft"]
    slider.locator(".noUi-handle").evaluate(PRESS_WHILE_MEASURING, keys)
    assert _in_step(panel)[0] != before[0]
    button.evaluate(RECORD)
    panel.page.wait_for_timeout(2000)  # more than a measurement takes
    assert panel.page.evaluate("said") == []
    assert button.locator("..").inner_text().strip() == button.inner_text()
