"""Settings of Sphinx; ``make docs`` builds the pages into ``build/docs``."""

from __future__ import annotations

from llama_runner import __version__

project = "llama_runner"
author = "llama_runner contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_static"]

html_theme = "furo"
html_title = f"llama_runner {release}"
html_static_path = ["_static"]
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
napoleon_attr_annotations = False  # members carry their types
