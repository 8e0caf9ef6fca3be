"""What Sphinx needs to build the site: ``make docs``.

The source is the whole checkout, so that a link between README, docs/, notebooks/ and benchmarks/ is the same here and
where the repository is read on the web.
"""

import sys
from pathlib import Path

import redlab

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "extensions"))

project = "redlab"
author = "The redlab authors"
version = release = redlab.__version__
html_title = f"redlab {version}"

extensions = ["myst_nb", "reference", "formulas", "names", "tables", "offline"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/*.md",
    "data/README.md",
    "docs/*.md",
    "docs/reference/*.md",
    "notebooks/*.ipynb",
]
exclude_patterns = [".venv", ".git", "build", "runs", "data/cache", "tests", "redlab", "figures", "**/.*"]

nitpicky = True
myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the notebooks hold their outputs; the tests execute them
nb_ipywidgets_js: dict = {}  # a page loads no script from elsewhere: a slider is drawn as the figure beside it

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
pygments_style = "default"
