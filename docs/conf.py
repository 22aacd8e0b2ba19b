"""Sphinx: ``make docs`` builds these pages, and fails at any warning."""

from __future__ import annotations

from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "django-raftsqlite"
author = "the contributors"
project_copyright = "the contributors"
version = release = version_of("django-raftsqlite")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

highlight_language = "text"

html_theme = "furo"
html_title = f"django-raftsqlite {release}"
html_copy_source = False
html_show_sphinx = False


def _read(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Links to SECURITY.md stay on the site; the pages are read beside the code, too, where its place is the root."""
    source[0] = source[0].replace("](../SECURITY.md", "](threat-model.md")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
