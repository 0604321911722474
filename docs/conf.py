"""The docs site: `make docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from workerkit import __version__  # noqa: E402

project = "workerkit"
author = "the workerkit authors"
project_copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docs._generate.site",
]
exclude_patterns = ["_build", "_generate"]
nitpicky = True
# The types in signatures are often private, or those of other projects, whose sites are not asked.
nitpick_ignore_regex = [("py:(class|obj|exc|data|attr|meth|func)", r"(?!workerkit\.[A-Z]\w+$).*")]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
smartquotes_action = "D"  # Only dashes: other quotes would change the messages of log records.
default_role = "literal"  # Docstrings are written with the backticks of Markdown.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = f"workerkit {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"footer_icons": []}
