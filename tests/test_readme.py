"""The README's examples run as they stand, and the page stays short."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from tiny import tiny_llama
from toy import toy_rows, toy_tokenizer
from transformers import AutoModelForCausalLM

import s3pet
import s3pet.studies

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A few steps instead of hundreds, in an empty folder: the only changes to the examples."""
    search, retrain = s3pet.search, s3pet.retrain
    few = {"batch_size": 4, "progress": False}
    monkeypatch.setattr(s3pet, "search", lambda *a, **k: search(*a, **{**few, "steps": 4, **k}))
    monkeypatch.setattr(s3pet, "retrain", lambda *a, **k: retrain(*a, **{**few, "steps": 2, "evaluations": 1, **k}))
    race = s3pet.studies.race
    monkeypatch.setattr(s3pet.studies, "race", lambda *a, **k: race(*a, **k, steps=4, batch_size=4, evaluations=2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code):
    names = {}
    exec(code, names)
    return names


@pytest.mark.slow
def test_the_first_example_prints_what_the_page_says(monkeypatch, tmp_path, capsys):
    """In full; other processors round otherwise, so sites may differ, but not what kind of structure it is."""
    monkeypatch.chdir(tmp_path)
    said = re.search(r"```text\n(.*?)```", README, re.S)[1]
    names = run(EXAMPLES[0].replace("budget=", "progress=False, budget="))
    printed = capsys.readouterr().out
    score = re.compile(r"test (0\.\d+|1\.0+)\)")
    assert float(score.search(printed)[1]) == pytest.approx(float(score.search(said)[1]), abs=0.05)
    assert [line.split()[:1] for line in printed.splitlines()[:2]] == [
        line.split()[:1] for line in said.splitlines()[:2]
    ]
    sizes = [sum(int(line.split()[-1]) for line in text.splitlines()[2:]) for text in (said, printed)]
    assert sizes[1] == names["result"].structure().n_params
    assert sizes[0] <= names["result"].budget.n_params and sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert {path.name for path in tmp_path.iterdir()} == {"gates.png", "gates.pdf"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # in peft
def test_your_model_your_data_runs(quick):
    model, tokenizer = tiny_llama(), toy_tokenizer()
    for part in (model, tokenizer):
        part.save_pretrained(quick / "my-model")
    for seed, split in enumerate(("train", "test")):
        rows = pd.DataFrame(toy_rows(40, seed)).replace({"label": {0: "no", 1: "yes"}})
        rows.rename(columns={"sentence1": "text"}).to_csv(quick / f"{split}.csv", index=False)
    code = EXAMPLES[1].replace('"0.1%"', '"5%"')  # a tiny model has little of which 0.1 % could be
    names = run("\n".join(["import s3pet", code, EXAMPLES[2].replace('"0.1%"', '"5%"')]))
    assert names["best"].structure.names == names["tuned"].structure.names
    assert names["merged"].difference < 1e-4
    assert {"merged", "adapter", "tuned", "runs"} <= {path.name for path in quick.iterdir()}
    logits = AutoModelForCausalLM.from_pretrained(quick / "merged")(torch.arange(6)[None]).logits
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(quick / "my-model"), quick / "adapter")
    assert torch.allclose(peft(torch.arange(6)[None]).logits, logits, atol=1e-5)


def test_names_reached_through_modules_exist():
    for path in set(re.findall(r"`s3pet\.([a-z_.]+)`", README)):
        thing = s3pet
        for part in path.split("."):
            thing = getattr(thing, part)


def test_the_page_is_short():
    assert len(README.split()) <= 750
