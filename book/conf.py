"""How Sphinx turns the executed notebooks into a web book that loads nothing."""

project = "Cria"
author = "the Cria authors"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
html_theme = "sphinx_book_theme"
html_title = "Cria: Llama 2-Chat, raised on a laptop"
html_static_path = []

nb_execution_mode = "off"  # `make course` has run them already
nb_ipywidgets_js = {}  # sliders live in JupyterLab; a page shows the picture beside
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]  # widget views, see above
