"""How a search is shown: silence, a bar, registered views; and a word when the machine is too busy."""

import os

import pytest
import torch
from tiny import tiny_t5
from toy import toy_task

from s3pet import make_space, progress, search


class Spy(progress.View):
    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def start(self, searcher):
        self.events.append("start")

    def advance(self, searcher):
        self.events.append(searcher.step)
        return searcher.step == self.stop_at

    def record(self, searcher):
        self.events.append(progress.describe_state(searcher))

    def end(self):
        self.events.append("end")

    def finish(self, result):
        self.events.append("finish")


def run(**options):
    model = tiny_t5()
    return search(model, toy_task(), make_space(model, "lora"), budget=300, batch_size=8, **options)


def test_a_view_hears_of_everything_and_may_stop_between_records():
    view = Spy(stop_at=7)
    result = run(progress=view, steps=250, warmup=20)
    assert (result.metrics["steps"], result.metrics["stopped"]) == (7, "stopped")
    assert view.events[0] == "start" and view.events[-2:] == ["end", "finish"]
    assert [event for event in view.events if isinstance(event, int)] == [*range(1, 8)]
    assert [event for event in view.events if "warm-up" in str(event)]


def test_a_view_ends_when_a_callback_fails():
    view = Spy()

    def fail(searcher):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(progress=view, steps=4, callbacks=[fail])
    assert view.events[-1] == "end"


def test_the_bar_says_loss_and_choice_in_plain_words(capsys):
    run(progress=progress.Bar(), steps=4)
    shown = capsys.readouterr().err
    assert "search: 100%" in shown and "loss" in shown and "choice" in shown


def test_registered_views_come_first(monkeypatch):
    mine = Spy()

    class Entry:
        def __init__(self, view):
            self.view = view

        def load(self):
            return lambda: self.view

    monkeypatch.setattr(
        progress, "entry_points", lambda group: [Entry(None), Entry(mine)] if group == "s3pet.views" else []
    )
    assert progress.make_view(True) is mine
    monkeypatch.setattr(progress, "entry_points", lambda group: [Entry(None)])
    assert isinstance(progress.make_view(True), progress.Bar)
    assert type(progress.make_view(False)) is progress.View
    assert progress.make_view(mine) is mine


@pytest.mark.parametrize(
    ("load", "threads", "busy"), [(0.1, 2, False), (1.9, 2, True), (7.0, 1, False), (0.4, 2, False), (3.0, 2, True)]
)
def test_a_busy_machine_is_noticed(monkeypatch, load, threads, busy):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert bool(progress.busy_note()) == busy
