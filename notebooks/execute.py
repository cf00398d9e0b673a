"""Execute notebooks from a clean kernel and keep their outputs; nothing else writes them.

    python notebooks/execute.py            # all of them, in place
    python notebooks/execute.py 03 04      # those whose names begin so
    python notebooks/execute.py --check    # execute, but write nothing

What differs between machines or runs (versions, times, execution order of another session) is stripped, so that a
notebook changes only if what it says changes. A widget is stored as its picture or text: without a kernel it could do
no more. One that has neither is not stored, such as a progress bar, which would stay at 0 %. Pictures have two dots for
each point of the page, so that they are sharp on today's screens, and a palette of 128 colours, which takes less
than half the space; a colour bar shows it as fine steps.

A number in the text is computed: ``<!--=EXPRESSION-->0.12<!--/-->`` in a Markdown cell holds what the f-string
``{EXPRESSION}`` is after the cells above it. The comments are not shown.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
NUMBER = re.compile(r"<!--=(.+?)-->.*?<!--/-->")
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, timeout: int = 600) -> tuple[nbformat.NotebookNode, float]:
    """Run one notebook in a new kernel, in its own folder; returns it with clean outputs, and the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if key in cell.metadata})
    start = time.perf_counter()
    options = ["--log-level=40"]  # errors only: it warns that the sockets of this machine are not encrypted
    options += ["--InlineBackend.figure_formats={'retina'}"]
    where = {"metadata": {"path": str(HERE)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        extra_arguments=options,
        resources=where,
        coalesce_streams=True,  # else two prints of one cell are sometimes stored as two outputs
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
            write_numbers(client, cell, index)
    seconds = time.perf_counter() - start
    notebook.metadata = nbformat.from_dict(METADATA)  # what the kernel said about itself goes again
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_empty_widget(output)]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop(WIDGET, None)
            if "image/png" in data:
                data["image/png"] = with_palette(data["image/png"])
    return notebook, seconds


def write_numbers(client: NotebookClient, cell: nbformat.NotebookNode, index: int) -> None:
    """Write the numbers in the text of a Markdown cell, computed in the running kernel."""
    expressions = NUMBER.findall(cell.source) if cell.cell_type == "markdown" else []
    if expressions:
        strings = ", ".join(f'f"""{{{expression}}}"""' for expression in expressions)
        probe = nbformat.v4.new_code_cell(f"print({strings}, sep='\\n')")
        client.execute_cell(probe, index, store_history=False)
        client.nb.cells[index] = cell  # where the client has put the probe
        values = iter(probe.outputs[0].text.splitlines())
        cell.source = NUMBER.sub(lambda number: f"<!--={number[1]}-->{next(values)}<!--/-->", cell.source)


def is_empty_widget(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a widget without a picture or a text that can stand for it."""
    data = output.get("data", {})
    return WIDGET in data and not {*data} - {WIDGET, "text/plain"}


def with_palette(picture: str) -> str:
    """A picture, PNG in base64, with 128 colours at most."""
    colours = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    file = io.BytesIO()
    colours.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; all without")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    found = [path for path in sorted(HERE.glob("*.ipynb")) if path.name.startswith(tuple(arguments.names) or "")]
    if not found:
        print(f"no notebook begins with {' or '.join(arguments.names)}", file=sys.stderr)
        return 2
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the kernel's debugger warns about frozen modules otherwise
    for path in found:
        notebook, seconds = execute(path)
        if not arguments.check:
            nbformat.write(notebook, path)
        print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
