"""The README's example runs as it stands, and the page stays short."""

import re
from pathlib import Path

import s3pet

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    """The only change is the number of steps."""
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    search, retrain = s3pet.search, s3pet.retrain
    monkeypatch.setattr(s3pet, "search", lambda *a, **k: search(*a, steps=4, batch_size=4, progress=False, **k))
    monkeypatch.setattr(s3pet, "retrain", lambda *a, **k: retrain(*a, steps=2, batch_size=4, evaluations=1, **k))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["structure"].n_params <= names["result"].budget.n_params
    assert f"{names['tuned'].metrics['test']} " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"gates.png", "gates.pdf"}


def test_names_reached_through_modules_exist():
    for path in set(re.findall(r"`s3pet\.([a-z_.]+)`", README)):
        thing = s3pet
        for part in path.split("."):
            thing = getattr(thing, part)


def test_the_page_is_short():
    assert len(README.split()) <= 900
