"""The embedded backbone and its tasks: whole, consistent, reproducible, and known to the backbone."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from s3pet import load_backbone, load_task, make_space, merge, retrain, search, to_peft
from s3pet.backbones import embedded_path
from s3pet.export.merging import SEARCH_PLAIN
from s3pet.objectives import make_objective
from s3pet.tasks import list_tasks

POCKET = Path(__file__).resolve().parent.parent / "data" / "pocket"
NAMES = sorted(path.parent.name for path in (POCKET / "tasks").glob("*/task.json"))


@pytest.fixture(scope="module")
def pocket():
    return load_backbone("pocket-t5")


def test_it_is_small_and_frozen(pocket):
    assert embedded_path() == POCKET
    n_params = sum(parameter.numel() for parameter in pocket.model.parameters())
    assert 1_000_000 < n_params < 3_000_000
    assert {parameter.dtype for parameter in pocket.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in pocket.model.parameters())
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) < 8_000_000
    assert len(make_space(pocket.model, "mixed", keep_inert=True)) == 4 * 18 + 4 * 20 + 4


def test_any_hugging_face_code_loads_it_in_one_dtype():
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(POCKET / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_there_are_at_least_four_tasks():
    assert len(NAMES) >= 4
    assert {f"pocket/{name}" for name in NAMES} <= set(list_tasks())


@pytest.mark.parametrize("name", NAMES)
def test_tasks_are_balanced_disjoint_and_in_the_vocabulary(name, pocket):
    task = load_task(f"pocket/{name}", pocket.tokenizer)
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    assert {split: len(part) for split, part in parts.items()} == {"train": 2000, "validation": 400, "test": 500}
    for part in parts.values():
        counts = [sum(example.label == label for example in part) for label in range(task.n_labels)]
        assert max(counts) - min(counts) <= 1
    texts = [example.source for part in parts.values() for example in part]
    assert len(set(texts)) == len(texts)
    unknown, vocabulary = pocket.tokenizer.unk_token_id, set(pocket.tokenizer.get_vocab())
    assert all(unknown not in ids for ids in pocket.tokenizer(texts)["input_ids"])
    assert set(task.label_words) <= vocabulary, "every label word is one token"


@pytest.fixture(scope="module")
def grammar():
    sys.path.insert(0, str(POCKET))
    try:
        import grammar

        yield grammar
    finally:
        sys.path.remove(str(POCKET))


@pytest.mark.parametrize("name", NAMES)
def test_the_builder_makes_these_very_rows(name, grammar):
    made = grammar.task_rows(name, {"train": 2000, "validation": 400, "test": 500}, 0)
    for split, rows in made.items():
        stored = [json.loads(line) for line in (POCKET / "tasks" / name / f"{split}.jsonl").read_text().splitlines()]
        assert stored == rows


def test_prompts_and_label_words_are_new_for_the_property(grammar):
    for task in grammar.TASKS.values():
        skills = grammar.SKILLS[task["property"]]
        assert not any(set(task["label_words"]) & set(words) for _, words in skills)
        assert not any(prompt in task["template"] for prompt, _ in skills)


@pytest.mark.parametrize("folder", ["model", "model-deep"])
def test_the_skills_were_learnt(folder):
    log = json.loads((POCKET / folder / "build_log.json").read_text())
    last = log["pretraining"][-1]
    accuracies = {key: value for key, value in last.items() if key not in ("step", "loss", "seconds")}
    assert len(accuracies) == 7
    assert min(accuracies.values()) > 0.95


def test_a_skill_prompt_is_answered_and_a_task_prompt_is_not(grammar, pocket):
    """The committed weights, not only the log: known prompts work, the tasks' prompts do not (yet)."""
    import random

    draw = random.Random(12345)
    rows = [grammar.skill_example(draw, "feeling", 1) for _ in range(200)]
    data = [{"text": text, "label": int(word == "positive")} for text, word in rows]
    splits = {"train": data[:100], "validation": data[100:150], "test": data[150:]}
    skill = load_task(splits, pocket.tokenizer, template="{text}", label_words=("negative", "positive"))
    assert make_objective(pocket.model, skill).evaluate(skill.test)["accuracy"] > 0.9
    task = load_task("pocket/sentiment", pocket.tokenizer)
    assert retrain(pocket.model, task, "zero-shot").metrics["test"] < 0.7


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_space_that_can_be_merged_from_search_to_from_pretrained(pocket, tmp_path):
    """The one that the errors about adapters name."""
    rules = json.loads(SEARCH_PLAIN.partition("model, ")[2].removesuffix(")"))
    task = load_task("pocket/sentiment", pocket.tokenizer, n_train=40).subsample(n_validation=8, n_test=8)
    space = make_space(pocket.model, rules)
    assert {candidate.pet for candidate in space} == {"lora", "lnfit"}
    result = search(pocket.model, task, space, budget="0.2%", steps=3, batch_size=4, progress=False)
    tuned = retrain(pocket.model, task, result.structure(), steps=3, batch_size=4, evaluations=1, test=False)
    for tensor in tuned.tensors().values():
        tensor.add_(0.05)
    merge(tuned).save(tmp_path / "plain")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain").eval()
    to_peft(tuned, tmp_path / "peft")
    adapter = PeftModel.from_pretrained(load_backbone("pocket-t5").model, tmp_path / "peft").eval()
    batch = dict(pocket.tokenizer(["a good book", "bad"], padding=True, return_tensors="pt"))
    batch["decoder_input_ids"] = batch["input_ids"][:, :2]
    with torch.no_grad():
        logits, expected, before = (model(**batch).logits for model in (plain, tuned.model, pocket.model))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(adapter(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2
