"""Places that cannot be written to: found before the work; found after it, the result is on the error."""

import resource
import signal
import warnings

import pytest
from fault_cases import in_child
from fault_kinds import SEARCH, model_and_space
from toy import short_task

import s3pet
from s3pet.errors import RunError


def full_disk(room=0):
    """From now on this process can write files of so many bytes only, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))


def refused(call):
    """Error, steps that were passed, and whether the result is on the error; in a child with a full disk."""

    def run():
        passed = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                said = ["done", repr(call(passed))]
            except RunError as error:
                kept = [getattr(error, name) for name in ("result", "tuned") if hasattr(error, name)]
                said = [str(error), *(map(repr, kept) if kept else [""])]
        return [*said, len(passed), [str(warning.message) for warning in caught]]

    return in_child(run, wait=300)[0]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_found_before_the_work(tmp_path, place):
    model, space = model_and_space()
    (tmp_path / "file").write_text("")
    never = [lambda searcher: 1 / 0]
    with pytest.raises(RunError, match="cannot be a folder for a finished run"):
        s3pet.search(model, short_task(), space, out=tmp_path / place, callbacks=never, **SEARCH)
    with pytest.raises(RunError, match="cannot be"):
        s3pet.compare(model, short_task(), {"a": "head"}, out=tmp_path / place / "rows.jsonl", progress=False)


def test_a_full_disk_is_found_before_the_work(tmp_path):
    model, space = model_and_space()

    def search(passed):
        full_disk()
        return s3pet.search(model, short_task(), space, out=tmp_path / "r", callbacks=[passed.append], **SEARCH)

    error, _, steps, _ = refused(search)
    assert "cannot be a folder for a finished run: File too large" in error and steps == 0


def test_a_disk_that_fills_up_costs_no_steps(tmp_path):
    model, space = model_and_space()

    def search(passed):
        def note(searcher):
            passed.append(searcher.step)
            if searcher.step == 5:
                full_disk()

        return s3pet.search(model, short_task(), space, out=tmp_path / "r", callbacks=[note], **SEARCH)

    error, result, steps, warned = refused(search)
    assert "cannot be written: " in error and result.startswith("SearchResult(") and steps == 20
    assert warned and all("the search goes on without a new checkpoint" in text for text in warned)

    def retrain(passed):
        from transformers import TrainerCallback

        class Fill(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                full_disk()

        options = {"steps": 4, "batch_size": 4, "callbacks": [Fill()]}
        return s3pet.retrain(model, short_task(), s3pet.manual_structure(space, "lnfit"), out=tmp_path / "t", **options)

    error, tuned, _, warned = refused(retrain)
    assert "cannot be written" in error and tuned.startswith("TunedModel(")
    assert any("training goes on without checkpoint" in text for text in warned)
