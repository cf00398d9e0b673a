"""What widgets share: pictures are drawn in one thread, stale requests are skipped, files are never overwritten."""

import asyncio
import io
import json
import threading
from base64 import b64decode

import matplotlib as mpl
import numpy as np
import pytest
from artists import ONE, SEEDS, pixels
from matplotlib.figure import Figure
from PIL import Image

from s3pet.errors import PlotError
from s3pet.plots.style import figure_style
from s3pet.widgets import compare, explore, gate_lab, gate_map
from s3pet.widgets.panel import FileRow, Picture


def elsewhere(function):
    """Run in another thread, and wait."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_slider_moved_in_another_thread_draws_in_the_thread_of_the_cells(monkeypatch):
    writers, write = set(), mpl.RcParams.__setitem__

    def noted(self, key, value):
        if self is mpl.rcParams:
            writers.add(threading.current_thread())
        write(self, key, value)

    async def cell():
        widget = gate_lab()
        await asyncio.sleep(0)
        before = widget.picture.value
        monkeypatch.setattr(mpl.RcParams, "__setitem__", noted)
        elsewhere(lambda: setattr(widget.budget, "value", 100))
        assert widget.picture.value == before and not writers, "this thread is busy"
        await asyncio.sleep(0)
        assert widget.picture.value != before and writers == {threading.current_thread()}

    asyncio.run(cell())


def test_a_figure_is_exported_in_the_thread_of_the_cells(tmp_path):
    threads = []

    async def cell():
        widget = gate_lab()
        row = FileRow("save", str(tmp_path / "a.txt"), lambda path: str(threads.append(threading.get_ident())), widget)
        elsewhere(row.button.click)
        assert not threads
        await asyncio.sleep(0)

    asyncio.run(cell())
    assert threads == [threading.get_ident()]


def test_only_the_newest_request_is_drawn():
    drawn = []

    async def cell():
        picture = Picture(print)
        for i in range(5):
            picture.ask(lambda figure, i=i: drawn.append(i) or f"picture {i}")
        await asyncio.sleep(0)
        assert drawn == [4] and picture.alt == "picture 4"
        picture.refresh()
        assert drawn == [4], "nothing has changed"

    asyncio.run(cell())


def test_without_an_event_loop_another_thread_leaves_the_drawing_to_refresh():
    picture = Picture(print)
    elsewhere(lambda: picture.ask(lambda figure: "later"))
    elsewhere(picture.refresh)
    assert not picture.value
    picture.refresh()
    assert picture.alt == "later" and bytes(picture.value[:4]) == b"\x89PNG"


def test_errors_in_drawing_are_reported_and_the_picture_stays():
    errors = []
    picture = Picture(errors.append)
    picture.ask(lambda figure: "first")
    before = picture.value

    def fail(figure):
        raise PlotError("no")

    picture.ask(fail)
    assert [str(error) for error in errors] == ["no"] and picture.value == before and picture.alt == "first"
    with pytest.raises(ZeroDivisionError):
        picture.ask(lambda figure: 1 / 0)  # a mistake in the program is not hidden


def test_settings_and_styles_are_as_before():
    before = dict(mpl.rcParams)
    with figure_style("talk", dark=True) as dark:
        picture = Picture(print)
    picture.ask(lambda figure: str(mpl.rcParams["font.size"]))
    assert float(picture.alt) == dark.font and dict(mpl.rcParams) == before


def test_without_a_kernel_a_widget_is_its_picture():
    for widget in (explore(ONE), compare(SEEDS), gate_lab()):
        bundle = widget._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        assert data["image/png"].startswith("iVBOR") and len(data["text/plain"]) > 20
        assert "application/vnd.jupyter.widget-view+json" in data
        json.dumps(data)
        assert isinstance(widget.figure(), Figure) and np.ptp(pixels(widget)) > 100


def test_pictures_have_two_pixels_for_each_of_the_page():
    """As with ``figure_formats={'retina'}``; front ends take the width of the page from the metadata."""
    widget = compare(SEEDS)
    assert pixels(widget).shape[1] == pytest.approx(2 * int(widget.picture.width), abs=2)
    for data, metadata in (widget._repr_mimebundle_(), gate_map(ONE)._repr_mimebundle_()):
        picture = Image.open(io.BytesIO(b64decode(data["image/png"])))
        on_page = metadata["image/png"]["width"], metadata["image/png"]["height"]
        assert picture.size == pytest.approx(2 * np.array(on_page), abs=2)


def test_a_file_is_never_overwritten(tmp_path):
    panel = gate_lab()
    row = FileRow("save", "a.json", lambda kind: (b"new", f"a {kind} file"), panel)
    row.path.value = str(tmp_path / "a")
    row.button.click()
    assert (tmp_path / "a.json").read_text() == "new" and "wrote" in panel.message.value
    (tmp_path / "a.json").write_text("old")
    row.button.click()
    assert (tmp_path / "a.json").read_text() == "old" and "was not changed" in panel.message.value
    row.path.value = " "
    row.button.click()
    assert "give a path" in panel.message.value
