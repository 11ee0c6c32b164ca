"""An executed notebook as an HTML page that needs no network.

nbconvert would fetch MathJax, so formulas become MathML, which browsers read by themselves.
"""

import re
from pathlib import Path

from trtkit.files import replacing


def write(executed: Path, page: Path) -> None:
    """Read an executed .ipynb and write its page, whole or not at all."""
    import nbformat

    with replacing(page) as temporary:
        temporary.write_text(html(nbformat.read(executed, 4)))


def warm_up() -> None:
    """Import nbconvert and compile its templates, two seconds of work that may overlap with a kernel's start."""
    from nbformat.v4 import new_notebook

    html(new_notebook())


def html(notebook) -> str:
    """The page's text; `notebook` is an nbformat node, whose Markdown cells are changed."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1], display="block"), cell.source, flags=re.S)
            cell.source = re.sub(r"\$([^$\n]+)\$", lambda m: convert(m[1]), text)
    text, _ = HTMLExporter().from_notebook_node(notebook)
    return re.sub(r'<script[^>]*src="https?://[^>]*>\s*</script>', "", text)
