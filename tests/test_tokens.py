"""Task, tokenizer and backbone against each other: what is cut, what is said, and what is refused before a pass."""

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
from tiny import tiny_bert, tiny_llama, tiny_roberta, tiny_t5
from tokenizers import Tokenizer, models, pre_tokenizers
from toy import toy_task, toy_tokenizer
from transformers import PreTrainedTokenizerFast
from zoo import zoo_model

from s3pet import load_task, make_space, manual_structure, retrain
from s3pet.errors import TaskError
from s3pet.objectives import make_objective
from s3pet.tasks.forms import read_records

LONG = pytest.mark.filterwarnings("ignore:.*tokens and are cut:UserWarning")


def pairs(first, second, **options):
    """Two sentences of so many words w1 and w2 in each of eight rows."""
    part = [{"sentence1": " ".join(["w1"] * first), "sentence2": " ".join(["w2"] * second), "label": k % 2}
            for k in range(8)]  # fmt: skip
    return load_task({"train": part, "test": part}, toy_tokenizer(), label_words=("w3", "w4"), **options)


def counts(row):
    return [row["input_ids"].count(toy_tokenizer().convert_tokens_to_ids(word)) for word in ("w1", "w2")]


@LONG
@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama])
@pytest.mark.parametrize("template", [None, "is {sentence1} so if {sentence2} ?"])
def test_the_longest_text_of_a_prompt_is_shortened_and_none_is_lost(make_model, template):
    for first, second in ((100, 5), (5, 100), (60, 80)):
        task = pairs(first, second, template=template)
        objective = make_objective(make_model(), task, {"max_length": 32})
        row = objective.encode(task.test[:1])[0]
        ones, twos = counts(row)
        assert 28 <= len(row["input_ids"]) <= 32
        assert (ones == 5, twos == 5) == (first == 5, second == 5), "the shorter one stays whole"
        assert abs(ones - twos) <= 1 or 5 in (first, second)
        whole = toy_tokenizer()(task.test[0].source)["input_ids"]
        if template:
            assert (row["input_ids"][0], row["input_ids"][-2:]) == (whole[0], whole[-2:])


@LONG
def test_rows_that_fit_and_single_texts_are_read_as_the_tokenizer_does():
    part = [{"text": " ".join(["w1"] * n), "label": k % 2} for k, n in enumerate([3, 90] * 4)]
    task = load_task({"train": part, "test": part}, toy_tokenizer(), label_words=("w3", "w4"))
    rows = make_objective(tiny_t5(), task, {"max_length": 32}).encode(task.test)
    sources = [example.source for example in task.test]
    assert [r["input_ids"] for r in rows] == toy_tokenizer()(sources, truncation=True, max_length=32)["input_ids"]
    decoder = make_objective(tiny_llama(), task, {"max_length": 32}).encode(task.test)
    assert [r["input_ids"] for r in decoder] == [ids[-31:] for ids in toy_tokenizer()(sources)["input_ids"]]


def test_inputs_are_capped_at_the_positions_of_the_backbone_which_is_said_once():
    part = [{"text": " ".join(["w1"] * n), "label": k % 2} for k, n in enumerate([9, 9, 9, 90] * 4)]
    task = load_task({"train": part, "test": part[:4]}, toy_tokenizer())
    for model, length in ((tiny_bert(), 40), (tiny_roberta(), 39), (zoo_model("opt"), 80), (zoo_model("gpt2"), 80)):
        objective = make_objective(model, task)
        word = max(map(len, getattr(objective, "words", [[]])))
        with pytest.warns(UserWarning, match=rf"'data': 5 of 20 rows \(25.0%\) have more than {length - word}") as said:
            objective.encode(task.train)
        assert len(said) == 1
        assert len(objective.predict(task.test)) == 4, "and nothing is said again"
        assert "the backbone has no more positions" in str(said[0].message)
        assert objective.settings.max_length == 128, "as declared"
    with pytest.warns(UserWarning, match=r"more than 16 tokens and are cut; objective=\{'max_length': …\} reads more"):
        make_objective(tiny_bert(), task, {"max_length": 16}).encode(task.train)
    short = load_task({"train": part[:3] * 4, "test": part[:3]}, toy_tokenizer(), label_words=("w3", "w4"))
    with pytest.warns(UserWarning, match=r"1 of 2 rows \(50.0%\) have more than 40 tokens"):  # of new rows
        make_objective(tiny_bert(), short).encode(read_records(short, ["w1", "w1 " * 50]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_objective(tiny_llama(), task, {"max_length": 128}).encode(task.train)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_a_tokenizer_of_another_backbone_is_refused_before_the_first_pass(make_model):
    tokenizer = copy.deepcopy(toy_tokenizer())
    tokenizer.add_tokens([f"n{k}" for k in range(40)])
    part = [{"text": f"w{k} n39", "label": k % 2} for k in range(8)]
    task = load_task({"train": part, "test": part}, tokenizer, label_words=("w3", "w4"))
    objective = make_objective(make_model(), task)
    with pytest.raises(
        TaskError, match=r"token 'n39' has number 87, but .* ends at 63; load the task with the tokenizer"
    ):
        objective.encode(task.train)
    if objective.head is None:
        with pytest.raises(TaskError, match="token 'n38' has number"):
            make_objective(make_model(), replace(task, label_words=("n38", "w4")))


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_an_empty_prompt_is_its_first_token_or_refused(make_model):
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<unk>": 2, "yes": 3, "no": 4}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for special in ({}, {"bos_token": "<bos>"}):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", **special)
        part = [{"text": "yes no"[3 * (k % 2) :], "label": k % 2} for k in range(8)]
        task = load_task({"train": part, "test": part}, tokenizer, template="{text}", label_words=("yes", "no"))
        objective = make_objective(make_model(), task)
        records = read_records(task, ["", "yes"])
        if special:
            assert [row["input_ids"] for row in objective.encode(records)] == [[1], [3]]
            assert len(objective.predict(records)) == 2
        else:
            with pytest.raises(TaskError, match="no beginning-of-sequence token; put words into the prompt"):
                objective.predict(records)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama])
def test_label_words_that_are_the_same_tokens_are_named(make_model):
    task = replace(toy_task(), label_words=("是", "yes", "否"), label_names=("a", "b", "c"))
    with pytest.raises(TaskError, match=r"\['是', '否'\] are not distinct tokens .*<unk>.*label_words=…"):
        make_objective(make_model(), task)


@LONG
def test_retraining_reads_shortened_rows():
    task = pairs(100, 5)
    model = tiny_t5()
    structure = manual_structure(make_space(model, "lora"), "lora_all")
    tuned = retrain(model, task, structure, steps=2, batch_size=4, evaluations=1, objective={"max_length": 24})
    assert math.isfinite(tuned.metrics["validation"])
    assert torch.isfinite(next(iter(tuned.tensors().values()))).all()
