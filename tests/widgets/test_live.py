"""The live view of a search: what it shows, that it stops and keeps, and that watching changes nothing."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_t5
from toy import toy_task

import s3pet
from s3pet.errors import BudgetError, PlotError
from s3pet.gates import sampling_gap
from s3pet.plots.overview import plot_search, search_diagnostics
from s3pet.progress import Bar, View, make_view
from s3pet.widgets.live import Live, watch

OPTIONS = {"budget": 300, "steps": 12, "batch_size": 16, "record_every": 1}


@pytest.fixture(scope="module")
def parts():
    model = tiny_t5()
    return model, toy_task(), s3pet.make_space(model, "mixed")


@pytest.fixture(scope="module")
def plain(parts):
    return s3pet.search(*parts, **OPTIONS, progress=False)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: the objects, and what replaced them."""
    seen = {"objects": [], "updates": []}

    class Handle:
        def update(self, bundle, raw):
            assert raw
            seen["updates"].append(bundle)

    monkeypatch.setattr("IPython.display.display", lambda x, display_id: seen["objects"].append(x) or Handle())
    return seen


def test_watching_changes_nothing_and_ends_in_the_static_figure(parts, plain, shown):
    live = Live()
    result = s3pet.search(*parts, **OPTIONS, progress=live)
    assert result.gates.equals(plain.gates) and result.trajectory.equals(plain.trajectory)
    assert shown["objects"] == [live.panel] and live.bar.value == live.bar.max == 12
    (bundle,) = shown["updates"]
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size[0] > 500
    assert f"{result.structure().n_params:,} parameters" in bundle["text/plain"]
    assert live.button not in [*live.panel.children], "nothing to press any more"
    axes = live.canvas.figure.axes
    lines = {line.get_gid(): line for ax in axes for line in ax.lines}
    assert np.allclose(lines["settled"].get_ydata(), search_diagnostics(result)["settled"], equal_nan=True)


def test_the_search_is_in_another_thread_and_the_button_stops_it(parts, shown):
    live, seen = Live(), []

    def press(searcher):
        seen.append(threading.current_thread())
        if searcher.step == 5:
            live.button.click()

    result = s3pet.search(*parts, **OPTIONS, progress=live, callbacks=[press])
    assert result.metrics["stopped"] == "stopped" and result.metrics["steps"] == 6, "it ends after the step it is in"
    assert 0 < result.structure().n_params <= 300
    assert threading.main_thread() not in seen
    assert "stopped" in shown["updates"][0]["text/plain"]


def test_an_interrupt_of_the_waiting_cell_keeps_what_was_found(parts, shown, monkeypatch):
    live, raised = Live(), []
    join = threading.Thread.join

    def interrupted(self, timeout=None):
        if self.name == "s3pet-search" and live.bar.value >= 0 and live.ready.is_set() and not raised:
            raised.append(True)
            raise KeyboardInterrupt
        return join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    result = s3pet.search(*parts, **{**OPTIONS, "steps": 5000}, progress=live)
    assert raised and result.metrics["stopped"] == "stopped" and result.metrics["steps"] < 5000


def test_errors_of_the_search_reach_the_cell(parts, shown):
    def fail(searcher):
        raise RuntimeError("from a callback")

    with pytest.raises(RuntimeError, match="from a callback"):
        s3pet.search(*parts, **OPTIONS, progress=Live(), callbacks=[fail])


def test_watch_returns_at_once_and_keeps_on_stopping(parts, plain, shown):
    watched = watch(s3pet.search, *parts, **OPTIONS)
    assert watched.result(60).gates.equals(plain.gates) and watched.done and "12 of 12, done" in repr(watched)
    longer = watch(s3pet.search, *parts, **{**OPTIONS, "steps": 5000})
    with pytest.raises(TimeoutError, match="still running"):
        longer.result(0.01)
    longer.stop()
    assert longer.result(60).metrics["stopped"] == "stopped"
    assert len(shown["objects"]) == len(shown["updates"]) == 2


def test_watch_raises_what_is_wrong_before_the_first_step(parts, shown):
    with pytest.raises(BudgetError, match="is not a number"):
        watch(s3pet.search, *parts, **{**OPTIONS, "budget": "much"})
    assert "BudgetError" in shown["updates"][0]["text/plain"]

    def fail(searcher):
        raise RuntimeError("later")

    watched = watch(s3pet.search, *parts, **OPTIONS, callbacks=[fail])
    with pytest.raises(RuntimeError, match="later"):
        watched.result(60)


def test_a_terminal_gets_a_bar_a_notebook_a_figure_and_false_nothing(monkeypatch):
    assert type(make_view(True)) is Bar and type(make_view(False)) is View
    mine = View()
    assert make_view(mine) is mine
    monkeypatch.setattr("s3pet.progress.in_notebook", lambda: True)
    assert isinstance(make_view(True), Live)


def test_the_bar_says_what_it_knows(parts, capsys):
    s3pet.search(*parts, **OPTIONS)
    said = capsys.readouterr().err
    assert "12/12" in said and "of 300 parameters" in said and "settled" in said


def test_diagnostics_are_those_of_the_search(plain, parts):
    found = search_diagnostics(plain)
    assert found["step"].tolist() == [*range(13)]
    assert found["expected"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert found["sampled"].iloc[-1] == pytest.approx(plain.metrics["sampling_gap"], rel=1e-3)
    exact = sampling_gap(plain.probs, parts[2].costs.double())
    assert found["sampled"].iloc[-1] == pytest.approx(exact, rel=1e-3)
    assert found["settled"].iloc[-1] == pytest.approx(plain.metrics["settled"]) and np.isnan(found["settled"].iloc[0])
    hard = s3pet.search(*parts, **OPTIONS, progress=False, sampling="hard")
    assert search_diagnostics(hard)["sampled"].to_numpy() == pytest.approx(1, abs=1e-4)
    with pytest.raises(PlotError, match="trajectory"):
        plot_search(s3pet.average_gates([plain]))


def test_the_overview_shows_gates_losses_cost_and_choice(plain):
    gates, loss, cost, choice = plot_search(plain, title="toy")
    lines = {line.get_gid(): line for ax in (loss, cost, choice) for line in ax.lines}
    assert lines["loss_val"].get_ydata() == pytest.approx(plain.history["loss_val"].rolling(10, min_periods=1).mean())
    assert lines["budget"].get_ydata()[0] == 1 and gates.get_title() == "toy"
    assert loss.get_xlim() == (0, 12)
