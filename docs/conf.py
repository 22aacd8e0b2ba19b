"""Sphinx: ``make docs`` builds these pages, and fails at any warning."""

from importlib.metadata import version as version_of

project = "django-raftsqlite"
author = "the contributors"
project_copyright = "the contributors"
version = release = version_of("django-raftsqlite")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"django-raftsqlite {release}"
html_copy_source = False
html_show_sphinx = False
