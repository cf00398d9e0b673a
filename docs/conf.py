"""The documentation site: ``make docs`` builds it in docs/_build/html, offline, and any warning is an error.

The source folder is the root of the project, so that the pages that people read on a code host (README, notebooks,
results) are pages of the site as they are, with their links. Notebooks are shown with the outputs that are stored in
them. The front page is the README with the contents of docs/contents.md below it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import s3pet  # noqa: E402
import s3pet.widgets  # noqa: E402

project, author, version, release = "s3pet", "the s3pet authors", s3pet.__version__, s3pet.__version__
project_copyright = "the s3pet authors, Apache-2.0"
extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.githubpages",
    "gallery",
]  # fmt: skip
root_doc = "README"
include_patterns = [
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/*/*.md", "docs/*.md", "docs/api/*.rst", "notebooks/*.ipynb",
    "notebooks/README.md", "tests/benchmarks/README.md",
]  # fmt: skip
exclude_patterns = [".*", "runs", "build", "dist", "docs/_build", "docs/contents.md", "**/.ipynb_checkpoints"]
templates_path = ["docs/templates"]

html_theme, html_title = "furo", f"s3pet {release}"
html_static_path, html_css_files = ["site.css"], ["site.css"]
html_copy_source = html_show_sphinx = False
html_math_renderer = "mathml"

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}  # nothing from a network: notebooks show the pictures of their widgets
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4

default_role = "py:obj"
nitpicky = True
nitpick_ignore = [("py:class", "PreTrainedTokenizerBase")]  # imported by type checkers only
autodoc_typehints, autodoc_member_order, autodoc_class_signature = "signature", "bysource", "mixed"
autodoc_default_options = {"exclude-members": "__new__"}
napoleon_numpy_docstring, napoleon_use_ivar, napoleon_custom_sections = False, True, ["Source"]

FORMULAS = {r"\arg": r"\operatorname{arg}"}  # what the converter does not know
OTHERS = {"collections", "contextlib", "datasets", "matplotlib", "nn", "numpy", "pandas", "pathlib", "t", "torch"}
OTHERS |= {"traitlets", "transformers"}
SEVERAL = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)+): (.+)")
logger = logging.getLogger(__name__)


def mathml(writer: Any, node: Any, display: str) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    formula = node.astext()
    for command, known in FORMULAS.items():
        formula = re.sub(rf"{re.escape(command)}(?![a-z])", lambda _: known, formula)  # noqa: B023
    written = convert(formula, display=display)
    if "\\" in written:
        logger.warning("unknown command in the formula %r", formula, location=node)
    writer.body.append(f'<div class="math">{written}</div>' if display == "block" else written)
    raise nodes.SkipNode


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the contents of the site below the README, with the notebooks that there are."""
    if name == root_doc:
        root, text = HERE.parent, (HERE / "contents.md").read_text(encoding="utf-8")
        found = {
            pattern: sorted(path.stem for path in root.glob(pattern)) for pattern in re.findall(r"notebooks/\d.*", text)
        }
        for pattern, stems in found.items():
            text = text.replace(pattern, "\n".join(f"notebooks/{stem}" for stem in stems))
        source[0] += "\n" + text


def read_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Prepare a docstring for napoleon: code and columns stay as they are, and what is no type does not become one."""
    for at in range(len(lines) - 1, 0, -1):
        before = next((line for line in reversed(lines[:at]) if line), "")
        if not lines[at - 1] and lines[at][:4] == "    " and before[:1] not in ("", " ") and before[-2:] != "::":
            end = next((n for n, line in enumerate(lines[at:], at) if line and line[0] != " "), len(lines))
            lines[at:at] = [f".. code-block:: {lexer(lines[at:end])}", ""]
    if "Returns:" in lines[:-1]:
        at = lines.index("Returns:")
        lines[at : at + 2] = [f":returns: {lines[at + 1].strip()}"]
    for at, line in enumerate(lines):
        if several := SEVERAL.fullmatch(line):  # one entry for several arguments
            names = several[1].replace(", ", ",").replace("*", r"\*")
            lines[at] = f"    {names}: {several[2]}"
    if what in ("attribute", "property"):
        lines.insert(0, "\\ ")  # the first line is a sentence, not a type


def own_signature(app: Sphinx, what: str, name: str, thing: Any, options: Any, written: str | None, value: Any) -> Any:
    """The arguments of a widget are those of its constructor, not of the library it is made of."""
    if what == "class" and "t.Any" in (written or ""):
        return str(inspect.signature(thing.__init__)).replace("self, ", "").removesuffix(" -> None"), value
    return None


def lexer(lines: list[str]) -> str:
    """How to colour an indented block: as Python if it is that."""
    try:
        ast.parse(textwrap.dedent("\n".join(lines)))
    except SyntaxError:
        return "text"
    return "python"


def space_names(app: Sphinx, tree: nodes.document) -> None:
    """Write a space after the commas that `read_docstring` has closed up."""
    for name in tree.findall(addnodes.literal_strong):
        if "," in name.astext():
            name.children = [nodes.Text(name.astext().replace(",", ", "))]


@cache
def documented(env: Any) -> dict[int, str]:
    """The names under which functions, classes and modules of the library are described, by their identity."""
    return {id(value_of(name)): name for name in env.get_domain("py").objects}


def value_of(name: str) -> Any:
    """The value of a dotted name, or None; what a class only declares is that class's own text about it."""
    parts = name.split(".")
    for at in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:at]))
        except ModuleNotFoundError:
            continue
        for part in parts[at:]:
            value = getattr(value, part, getattr(value, "__annotations__", {}).get(part))
        return value
    return None


def find_name(app: Sphinx, env: Any, node: Any, text: Any) -> Any:
    """Lead a name that is described under another one to its description; a name that does not exist is a warning.

    Names of other libraries, and those of ours that have no description, are shown without a link.
    """
    target, home = node.get("reftarget", ""), node.get("py:module") or "s3pet"
    if node.get("refdomain") != "py" or target.split(".")[0] in OTHERS:
        return text if node.get("refdomain") == "py" else None
    places = sorted(
        (name for name in sys.modules if name.partition(".")[0] == "s3pet"), key=lambda n: (home not in n, n)
    )
    within = [f"{node['py:class']}.{target}"] if node.get("py:class") else []
    names = [target, *(f"{place}.{name}" for name in [*within, target] for place in places)]
    value = next((value for name in names if (value := value_of(name)) is not None), None)
    if value is None:
        return None
    if (known := documented(env).get(id(value))) is None:
        return text
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", known, node, text)


def add_front_page(app: Sphinx, problem: Exception | None) -> None:
    """Let the address of the site lead to its front page."""
    if problem is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    for name in s3pet.widgets.__all__:  # imported on first use, which autodoc does not do
        value = getattr(s3pet.widgets, name)
        value.__name__ = name  # a class is described under the name that people call
        setattr(s3pet.widgets, name, value)
    inline, block = (lambda writer, node, kind=kind: mathml(writer, node, kind) for kind in ("inline", "block"))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", own_signature)
    app.connect("doctree-read", space_names)
    app.connect("missing-reference", find_name)
    app.connect("build-finished", add_front_page)
