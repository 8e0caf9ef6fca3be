"""What a page without scripts cannot show: it is said, in its place, and nothing else changes."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from redlab.lab.report.html import notebook_chapter

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPT, PLOTLY = "application/javascript", "application/vnd.plotly.v1+json"


def output_of(*bundles: dict) -> BeautifulSoup:
    """The chapter's output of one cell that displayed these."""
    outputs = [v4.new_output("display_data", data=bundle) for bundle in bundles]
    cell = v4.new_code_cell("show()", outputs=outputs)
    soup = BeautifulSoup(notebook_chapter(v4.new_notebook(cells=[cell]), "01").body, "html.parser")
    return soup.find(class_="cell")


def said(*bundles: dict) -> str:
    return " ".join(" ".join(part.get_text() for part in output_of(*bundles).find_all(class_="output")).split())


@pytest.mark.parametrize(
    ("bundle", "named"),
    [
        ({SCRIPT: "alert(1)"}, SCRIPT),
        ({PLOTLY: {"data": []}}, PLOTLY),
        ({PLOTLY: {"data": []}, "text/html": "<div></div><script>draw()</script>"}, f"{PLOTLY}, text/html"),
        ({"text/html": "<script>alert(1)</script><style>p {}</style>"}, "text/html"),
        ({"application/pdf": "AAAA"}, "application/pdf"),
        ({"video/mp4": "AAAA"}, "video/mp4"),
        ({WIDGET: {"model_id": "1"}}, WIDGET),
    ],
)
def test_an_output_that_cannot_be_shown_is_named(bundle, named):
    assert said(bundle) == f"[left out, for this page can't show it: {named}]"
    with_words = {**bundle, "text/plain": "<Figure of one>"}
    assert said(with_words) == f"[left out, for this page can't show it: {named}] <Figure of one>"
    assert said({"text/plain": "before"}, bundle, {"text/plain": "after"}).startswith("before [left out")
    assert not output_of(bundle).find(["script", "style"])


def test_what_is_played_inside_html_is_named_where_it_was():
    assert said({"text/html": "<p>see <iframe src='https://x'></iframe></p>"}) == "see [left out: iframe]"
    assert said({"text/html": "<video><embed></video>"}) == "[left out: video]"


@pytest.mark.parametrize(
    "bundle",
    [
        {"text/plain": "12"},
        {"text/html": "<style>td {}</style><table><tr><td>12</td></tr></table>", "text/plain": "12"},
        {"image/png": PIXEL, "text/plain": "12"},
        {"image/png": PIXEL, SCRIPT: "alert(1)"},
        {"text/markdown": "12"},
        {"text/latex": "$12$", "text/plain": "<Latex>"},
    ],
)
def test_what_can_be_shown_needs_no_note(bundle):
    assert "left out" not in said(bundle)
    assert "12" in said(bundle) or output_of(bundle).find("img")


def test_formulas_of_outputs_are_mathml():
    for kind in ("text/markdown", "text/latex"):
        cell = output_of({kind: r"\begin{align} a_1 &= 2 \\ b &= 3 \end{align}", "text/plain": "<of one>"})
        assert len(cell.find_all("mtr")) == 2
        assert "begin" not in cell.get_text()


@pytest.mark.parametrize("held", [None, {}, {"b.png": {"image/png": PIXEL}}, {"a.png": {}}])
def test_a_picture_that_the_notebook_lacks_is_said_and_the_rest_is_there(held):
    cell = v4.new_markdown_cell("# One\n\n![two bars](attachment:a.png) and `![x](attachment:a.png)`")
    if held is not None:
        cell["attachments"] = held
    html = notebook_chapter(v4.new_notebook(cells=[cell, v4.new_markdown_cell("the rest")]), "01").body
    text = BeautifulSoup(html, "html.parser").get_text()
    assert "[an image is missing from the notebook: two bars] and ![x](attachment:a.png)" in text
    assert "the rest" in text


def test_a_picture_that_the_notebook_holds_is_shown():
    cell = v4.new_markdown_cell("![two bars](attachment:a%20b.png)")
    cell["attachments"] = {"a b.png": {"image/png": PIXEL}}
    soup = BeautifulSoup(notebook_chapter(v4.new_notebook(cells=[cell]), "01").body, "html.parser")
    assert soup.img["src"] == f"data:image/png;base64,{PIXEL}"


ATTACKS = [
    "<img src=x onerror=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "<p style='background: url(https://x)' onclick=alert(1)>x</p>",
    "<form action='https://x'><button formaction='https://x'>x</button></form>",
    "<svg><script>alert(1)</script><a xlink:href='https://x'>x</a></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>",
    "<script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<meta http-equiv=refresh content='0; url=https://x'><base href='https://x'>",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_a_notebook_runs_loads_or_leads_anywhere_but_the_web(attack):
    cells = [
        v4.new_markdown_cell(f"{attack}\n\n*text* {attack}"),
        v4.new_code_cell("x", outputs=[v4.new_output("display_data", data={"text/html": attack})]),
        v4.new_code_cell("x", outputs=[v4.new_output("display_data", data={"text/markdown": attack})]),
        v4.new_code_cell("x", outputs=[v4.new_output("stream", text=attack)]),
    ]
    cells[1].outputs[0].metadata["text/html"] = {"isolated": True}
    body = notebook_chapter(v4.new_notebook(cells=cells), "01").body
    soup = BeautifulSoup(body, "html.parser")
    assert not soup.find(["script", "style", "iframe", "form", "meta", "base", "svg", "object"])
    for tag in soup.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on") or "action" in name or name == "srcdoc"]
        assert str(tag.get("href", "https://")).startswith(("https://", "http://"))
        assert str(tag.get("src", "data:")).startswith("data:")
        assert "url" not in str(tag.get("style", ""))
