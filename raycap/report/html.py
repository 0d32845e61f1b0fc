"""Renders the HTML templates. All values are escaped, and a content security policy keeps a page
from loading or running anything else."""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raycap import __version__

if TYPE_CHECKING:  # a page without charts does not load matplotlib
    from matplotlib.figure import Figure

_FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
TEMPLATES = Path(__file__).parent / "templates"


def render(**values: Any) -> str:
    """The page as one text of HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plot": _plot, "plain": _plain}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        **values,
        version=__version__,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # Even if a caption got through as markup, the browser would not run it or load anything.
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    )
    return page.encode("utf-8", "replace").decode()


def _plot(figure: "Figure") -> Markup:
    from raycap import plots

    return Markup(plots.svg(figure))


def _plain(text: str) -> str:
    """Replace control characters and lone surrogates, which HTML does not allow."""
    return _FORBIDDEN.sub("\ufffd", str(text))
