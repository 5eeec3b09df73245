"""The site that `make docs` builds. Its pages are Markdown; the reference is made from the docstrings."""

from otel_step_hook import __version__

project = "otel-step-hook"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"{project} {version}"
html_show_copyright = html_show_sphinx = html_copy_source = False

myst_heading_anchors = 3

# Docstrings have `single backticks` around code, and around names of the interface, which become links.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Nothing is fetched while the site is built, so that names of other packages are not looked up; these are our own.
nitpick_ignore_regex = [("py:.*", r"(?!otel_step_hook\.).*|.*\.(StartedSpan|_S)")]
