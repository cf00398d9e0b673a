"""The live view of a search: what it shows, that it stops and keeps, that it leaves nothing behind."""

import asyncio
import base64
import io
import threading
import time

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_t5
from toy import toy_task

import s3pet
from s3pet.errors import BudgetError, SearchError
from s3pet.plots.overview import search_diagnostics
from s3pet.plots.style import style
from s3pet.widgets import live as module
from s3pet.widgets.live import Live, notebook_view, watch

OPTIONS = {"budget": 300, "steps": 12, "batch_size": 16}


@pytest.fixture(scope="module")
def parts():
    model = tiny_t5()
    return model, toy_task(), s3pet.make_space(model, "mixed")


@pytest.fixture(scope="module")
def plain(parts):
    return s3pet.search(*parts, **OPTIONS, progress=False)


@pytest.fixture(autouse=True)
def _nothing_is_left(parts):
    """After every test: no thread of a search, no hook on the model, frozen as before."""
    yield
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in parts[0].modules())


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("s3pet")]


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: the objects, and what replaced them."""
    seen = {"objects": [], "updates": []}

    class Handle:
        def update(self, bundle, metadata, raw):
            assert raw and metadata["image/png"]["width"] > 500
            seen["updates"].append(bundle)

    monkeypatch.setattr(module, "display", lambda x, display_id: seen["objects"].append(x) or Handle())
    return seen


@pytest.fixture
def writers(monkeypatch):
    """The threads that have written to matplotlib's settings."""
    seen, write = set(), mpl.RcParams.__setitem__

    def noted(self, key, value):
        if self is mpl.rcParams:
            seen.add(threading.current_thread())
        write(self, key, value)

    monkeypatch.setattr(mpl.RcParams, "__setitem__", noted)
    return seen


def test_watching_changes_nothing_and_ends_in_the_static_figure(parts, plain, shown):
    live = Live()
    result = s3pet.search(*parts, **OPTIONS, progress=live)
    assert result.gates.equals(plain.gates) and result.trajectory.equals(plain.trajectory)
    assert shown["objects"] == [live.panel] and live.bar.value == live.bar.max == 12
    (bundle,) = shown["updates"]
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size[0] > 500
    assert f"{result.structure().n_params:,} parameters" in bundle["text/plain"]
    lines = {line.get_gid(): line for ax in live.picture.figure.axes for line in ax.lines}
    assert np.allclose(lines["settled"].get_ydata(), search_diagnostics(result)["settled"], equal_nan=True)


def test_a_search_draws_in_its_own_thread_while_it_runs(parts, shown, writers):
    live, pictures = Live(), []
    live.picture.observe(lambda change: pictures.append(change["new"]), "value")
    s3pet.search(*parts, **OPTIONS, progress=live)
    assert len(pictures) > 1 and writers == {threading.current_thread()}


def test_watch_never_changes_settings_of_matplotlib_from_its_thread(parts, shown, writers):
    watched, before = watch(s3pet.search, *parts, **OPTIONS), style()
    while not watched.done:
        assert style() is before
        time.sleep(0.01)
    assert writers <= {threading.current_thread()}
    assert not shown["updates"], "this thread has not been asked to draw yet"
    watched.result()
    assert "image/png" in shown["updates"][0]


def test_watch_draws_in_the_event_loop_while_the_search_runs(parts, shown, writers):
    async def cell():
        watched = watch(s3pet.search, *parts, **{**OPTIONS, "steps": 1000})
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if watched.picture.value:
                break
        assert watched.picture.value and not watched.done
        watched.button.click()
        while not shown["updates"]:
            await asyncio.sleep(0.01)
        return watched

    watched = asyncio.run(cell())
    assert watched.result().metrics["stopped"] == "stopped" and writers == {threading.current_thread()}


@pytest.mark.parametrize("pressed", ["before the start", "in a step", "at a record"])
def test_the_button_stops_anywhere_and_keeps(parts, shown, monkeypatch, pressed):
    live = Live()
    if pressed == "before the start":
        live.button.click()
    if pressed == "in a step":
        collate = s3pet.objectives.Objective.collate
        calls = []

        def press(self, rows):
            calls.append(rows)
            if len(calls) == 9:
                live.button.click()
            return collate(self, rows)

        monkeypatch.setattr(s3pet.objectives.Objective, "collate", press)

    def at_record(searcher):
        if pressed == "at a record" and searcher.step == 10:
            live.button.click()

    result = s3pet.search(*parts, **OPTIONS, progress=live, callbacks=[at_record])
    assert result.metrics["stopped"] == "stopped" and 0 < result.metrics["steps"] < 12
    assert 0 < result.structure().n_params <= 300 and len(result.history) == result.metrics["steps"]
    assert "stopped" in shown["updates"][0]["text/plain"] and live.button.disabled


def test_an_interrupt_while_drawing_keeps_what_was_found(parts, shown, monkeypatch):
    def interrupted(*args, **kwargs):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "plot_search", interrupted)
    monkeypatch.setattr(module, "display", lambda *args, **kwargs: None)
    result = s3pet.search(*parts, **{**OPTIONS, "steps": 1000}, progress=Live())
    assert result.metrics["stopped"] == "interrupted" and 0 < result.metrics["steps"] < 1000
    assert 0 < result.structure().n_params <= 300


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("broken", ["plot_search", "describe_state"])
def test_an_error_of_the_view_is_shown_and_does_not_end_the_search(
    parts, plain, shown, monkeypatch, broken, background
):
    def fail(*args, **kwargs):
        raise ValueError("from the view")

    monkeypatch.setattr(module, broken, fail)
    seen, live = [], Live()
    live.text.observe(lambda change: seen.append(change["new"]), "value")
    if background:
        watched = watch(s3pet.search, *parts, **OPTIONS)
        result = watched.result(60)
    else:
        result = s3pet.search(*parts, **OPTIONS, progress=live)
        assert any("ValueError: from the view" in text for text in seen)
    assert result.gates.equals(plain.gates) and result.metrics["steps"] == 12


@pytest.mark.parametrize("background", [False, True])
def test_errors_of_the_search_reach_the_user_and_the_panel(parts, shown, background):
    def fail(searcher):
        raise RuntimeError("from a callback")

    def run():
        if background:
            return watch(s3pet.search, *parts, **OPTIONS, callbacks=[fail]).result(60)
        return s3pet.search(*parts, **OPTIONS, progress=Live(), callbacks=[fail])

    with pytest.raises(RuntimeError, match="from a callback"):
        run()


def test_an_error_of_the_view_does_not_hide_that_the_search_diverged(parts, shown, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("from the view")

    monkeypatch.setattr(module, "plot_search", fail)
    monkeypatch.setattr(Live, "_replace", fail)
    with pytest.raises(SearchError, match="diverged"):
        s3pet.search(*parts, **{**OPTIONS, "lr": 1e30}, progress=Live())


def test_watch_does_not_wait_for_ever_if_the_display_fails(parts, shown, monkeypatch):
    monkeypatch.setattr(module, "display", lambda *args, **kwargs: 1 / 0)
    caught = []

    def run():
        try:
            watch(s3pet.search, *parts, **{**OPTIONS, "budget": "much"})
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert [type(error) for error in caught] == [BudgetError]


def test_watch_returns_at_once_and_keeps_on_stopping(parts, plain, shown):
    watched = watch(s3pet.search, *parts, **OPTIONS)
    assert watched.result(60).gates.equals(plain.gates) and watched.done and "12 of 12, done" in repr(watched)
    longer = watch(s3pet.search, *parts, **{**OPTIONS, "steps": 1000})
    with pytest.raises(TimeoutError, match="still running"):
        longer.result(0.01)
    longer.stop()
    assert longer.result(60).metrics["stopped"] == "stopped"
    assert len(shown["objects"]) == len(shown["updates"]) == 2


def test_watch_raises_what_is_wrong_before_the_first_step(parts, shown):
    with pytest.raises(BudgetError, match="is not a number"):
        watch(s3pet.search, *parts, **{**OPTIONS, "budget": "much"})
    assert "BudgetError" in shown["objects"][0].children[0].children[2].value


def test_an_interrupt_while_watch_waits_for_the_start_leaves_no_thread(parts, shown, monkeypatch):
    monkeypatch.setattr(Live, "__init__", _interrupted_init(Live.__init__))
    with pytest.raises(KeyboardInterrupt):
        watch(s3pet.search, *parts, **{**OPTIONS, "steps": 100_000})
    assert not threads()


def _interrupted_init(init):
    """A Live whose start cannot be waited for."""

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    def wrapped(self):
        init(self)
        self.started = Interrupted()

    return wrapped


def test_notebooks_get_a_live_view_and_others_none(monkeypatch):
    assert notebook_view() is None
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    assert isinstance(notebook_view(), Live)
    monkeypatch.setattr(module, "at_least", lambda package, major: False)
    assert notebook_view() is None
