"""The directives of docs/gallery.md: pictures that are drawn while the site is built, from the code beside them.

``{setup}`` runs code that the pictures share. ``{picture} NAME`` runs the code of one figure, light and dark, in paper
style, saves it as PNG, PDF and SVG in docs/_build/gallery, and shows it with its code, files, size, caption template
and alt text. The build fails if code raises, or if a figure function of `s3pet.plots` has no picture.
"""

from __future__ import annotations

import os
import textwrap
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from s3pet import plots

FOLDER, FORMATS = "docs/_build/gallery", ["png", "pdf", "svg"]
DPI, SCALE = 200, 115  # of a PNG file; pixels on the page for an inch of a paper
logger = logging.getLogger(__name__)

ENTRY = """
```{{image}} /{base}.png
:alt: {alt}
:class: only-light
:width: {width}px
```

```{{image}} /{base}-dark.png
:alt: {alt}
:class: only-dark
:width: {width}px
```

{caption}

{{py:func}}`~s3pet.plots.{name}` · {{download}}`PDF </{base}.pdf>` · {{download}}`SVG </{base}.svg>` · {size}

```python
{code}
```

<details><summary>Caption template and alt text</summary>

```text
{template}
```

{alt}

</details>
"""


class Setup(SphinxDirective):
    """Code that the pictures of a page share."""

    has_content = True

    def run(self) -> list[Any]:
        """Run the code and show it."""
        self.execute()
        return self.parse_text_to_nodes(f"```python\n{self.code}\n```")

    @property
    def code(self) -> str:
        """What stands in the directive."""
        return "\n".join(self.content)

    @property
    def names(self) -> dict[str, Any]:
        """The variables of the page."""
        return self.env.temp_data.setdefault("pictures", {})

    def execute(self) -> None:
        """Run the code in the root of the project, as a user does."""
        before = os.getcwd()
        os.chdir(self.env.srcdir)
        try:
            exec(compile(self.code, f"{self.env.docname}.md, line {self.lineno}", "exec"), self.names)
        finally:
            os.chdir(before)


class Picture(Setup):
    """The figure of one function, drawn by the code."""

    required_arguments = 1
    option_spec: ClassVar = {"caption": directives.unchanged_required, "alt": directives.unchanged_required}

    def run(self) -> list[Any]:
        """Draw, save and show it."""
        (name,), root = self.arguments, Path(self.env.srcdir)
        drawn(self.env).add(name)
        base, alt = f"{FOLDER}/{name}", ""
        for dark in (True, False):
            with plots.figure_style("paper", dark=dark):
                self.execute()
                alt = self.filled("alt")
                plots.save_figure(plt.gcf(), root / (base + "-dark" * dark), ["png"] if dark else FORMATS, alt=alt)
            plt.close("all")
        with Image.open(root / f"{base}.png") as picture:
            width, height = (pixels / DPI for pixels in picture.size)
        place = "for one column" if width < 3.6 else "for the width of a page" if width < 7.2 else "wider than a page"
        size = f"{width:.1f} × {height:.1f} inches, {place}"
        template = textwrap.fill(" ".join(self.options["caption"].split()), 100, break_long_words=False)
        parts = {"caption": self.filled("caption"), "template": template, "alt": alt, "code": self.code}
        text = ENTRY.format(name=name, base=base, width=round(SCALE * width), size=size, **parts)
        return self.parse_text_to_nodes(text)

    def filled(self, option: str) -> str:
        """The text of an option, an f-string, on one line."""
        return eval(f"f'''{' '.join(self.options[option].split())}'''", self.names)


def drawn(env: BuildEnvironment) -> set[str]:
    """The functions that have a picture."""
    return env.domaindata.setdefault("gallery", set())  # type: ignore[return-value]


def check_gallery(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of figure functions without a picture, and of pictures without a function."""
    wanted = {name for name in plots.__all__ if name.startswith("plot_")}
    for name in sorted(wanted ^ drawn(env)):
        logger.warning("docs/gallery.md: %s has %s", name, "no picture" if name in wanted else "no function")


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives and the check."""
    plt.switch_backend("agg")
    getLogger("fontTools").setLevel("WARNING")
    app.add_directive("setup", Setup)
    app.add_directive("picture", Picture)
    app.connect("env-check-consistency", check_gallery)
    return {"parallel_read_safe": False}
