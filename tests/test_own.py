"""Objectives of the user's own, and the ready ones: from rows to a tuned model that is saved, loaded and predicts."""

import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from PIL import Image
from tiny import tiny_bert, tiny_llama, tiny_t5
from toy import WORDS, easy_task, short_task, toy_tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
)
from zoo import zoo_model

from s3pet import compare, load_tuned, make_space, merge, retrain, search, to_peft
from s3pet.backbones import backbone_checksum
from s3pet.errors import ExportError, RunError, SearchError, StructureMismatchError, TaskError
from s3pet.export import save_folder
from s3pet.objectives import Generation, ImageClassification, ModelLoss, MultiLabel, TokenClassification
from s3pet.objectives.heads import own_heads
from s3pet.objectives.own import objective_of
from s3pet.objectives.ready import rebuilt
from s3pet.structure import random_structure
from s3pet.studies.population import Population
from s3pet.tasks.plain import RowTask, class_number, exact_match, f1_micro, rouge_l, word_accuracy
from s3pet.trainer import Recipe

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip


def bert(kind, n_labels=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(BertConfig(**SMALL, num_labels=n_labels)).eval()


def sentences(n, k=5):
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, k))) for _ in range(n)]


def task_of(rows, metric=exact_match, label="labels", name="mine"):
    return RowTask(name, rows[:16], rows[16:20], rows[20:], metrics={"score": metric}, label=label)


class Similarity:  # how similar two texts are: the cosine of their mean states
    def __init__(self, tokenizer):
        self.tokenizer, self.settings = tokenizer, {"scale": 1.0}

    def encode(self, rows):
        return [{**self.tokenizer(row["a"]), "other": self.tokenizer(row["b"])["input_ids"], **row} for row in rows]

    def collate(self, rows):
        columns = [[torch.tensor(row[name]) for row in rows] for name in ("input_ids", "other")]
        first, second = (torch.nn.utils.rnn.pad_sequence(column, batch_first=True) for column in columns)
        return {"first": first, "second": second, "labels": torch.tensor([row["value"] for row in rows])}

    def cosine(self, model, batch):
        mean = [self.mean(model, batch[name]) for name in ("first", "second")]
        return self.settings["scale"] * F.cosine_similarity(*mean)

    def mean(self, model, ids):
        mask = (ids != 0).long()
        return (model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]).sum(1)

    def loss(self, model, batch):
        return F.mse_loss(self.cosine(model, batch), batch["labels"])

    def predict(self, model, batch):
        return self.cosine(model, batch).tolist()


def nearness(predictions, labels):
    return -sum(abs(one - other) for one, other in zip(predictions, labels, strict=True))


def similarity_case():
    pairs = zip(sentences(24), sentences(24)[::-1], strict=True)
    rows = [{"a": a, "b": b, "value": float(k % 2)} for k, (a, b) in enumerate(pairs)]
    return tiny_bert(), task_of(rows, nearness, "value"), Similarity(toy_tokenizer())


def own_loss_case():
    rows = [{**toy_tokenizer()(text), "labels": k % 2, "text": text} for k, text in enumerate(sentences(24))]
    return bert(BertForSequenceClassification), task_of(rows), ModelLoss()


def choice_case():
    rows = [{**toy_tokenizer()([text, f"{text} w1", "w2"]), "labels": k % 3} for k, text in enumerate(sentences(24))]
    for row in rows:  # of different lengths, as a tokenizer leaves them; a row is filled up by the user
        longest = max(map(len, row["input_ids"]))
        row["attention_mask"] = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in row["input_ids"]]
        row["input_ids"] = [ids + [0] * (longest - len(ids)) for ids in row["input_ids"]]
        row.pop("token_type_ids", None)
    return bert(BertForMultipleChoice), task_of(rows), ModelLoss()


def prepared(row):
    inputs = toy_tokenizer()(row["question"])
    return inputs | {"start_positions": row["start"], "end_positions": row["end"]} if "start" in row else inputs


def answers_case():
    rows = [{"question": text, "start": k % 2, "end": k % 2 + 1} for k, text in enumerate(sentences(24))]
    task = task_of(rows, label=lambda row: (row["start"], row["end"]))
    return bert(BertForQuestionAnswering), task, ModelLoss(prepared)


def tags_case():
    words = [text.split() for text in sentences(24)]
    rows = [{"tokens": row, "tags": ["O" if word < "w2" else "PER" for word in row]} for row in words]
    objective = TokenClassification(toy_tokenizer(), names=("O", "PER"))
    task = replace(task_of(rows, word_accuracy, "tags"), validation=Dataset.from_list(rows[16:20]))
    return bert(BertForTokenClassification), task, objective


def moods_case():
    rows = [{"text": text, "labels": ["fun", 1, "new"][: k % 4]} for k, text in enumerate(sentences(24))]
    model = bert(BertForSequenceClassification, 3)
    return model, task_of(rows, f1_micro), MultiLabel(toy_tokenizer(), names=("fun", "sad", "new"))


def written(model):
    rows = [{"source": text, "target": " ".join(text.split()[:2])} for text in sentences(24)]
    return model, task_of(rows, rouge_l, "target"), Generation(toy_tokenizer(), max_target=4)


def images_case():
    draw = random.Random(0)
    rows = [
        {"image": Image.new("L", (32, 32), draw.randint(0, 120) + 130 * (k % 2)), "label": k % 2} for k in range(24)
    ]
    return zoo_model("vit-classifier"), task_of(rows, label="label"), ImageClassification(pixels)


def pixels(images):
    return torch.stack([torch.tensor(list(image.tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255 for image in images])


CASES = {
    "similarity": similarity_case,
    "own loss": own_loss_case,
    "choice": choice_case,
    "answers": answers_case,
    "tags": tags_case,
    "moods": moods_case,
    "t5": lambda: written(tiny_t5()),
    "bart": lambda: written(zoo_model("bart")),
    "llama": lambda: written(tiny_llama()),
    "gpt2": lambda: written(zoo_model("gpt2")),
    "fsmt": lambda: written(zoo_model("fsmt")),
    "prophetnet": lambda: written(zoo_model("prophetnet")),
    "switch": lambda: written(zoo_model("switch")),
    "images": images_case,
}


HEADS = {"own loss": 66, "choice": 33, "answers": 66, "tags": 66, "moods": 99, "images": 66}


def tune(case, **options):
    model, task, objective = CASES[case]()
    space = space_of(case, model)
    return retrain(model, task, random_structure(space, "40%", seed=1), objective=objective, **STEPS, **options)


def space_of(case, model):
    choices = {"input_ids": torch.ones(2, 3, 5, dtype=torch.long)} if case == "choice" else None
    return make_space(model, "lora", example=choices)


STEPS = {"steps": 3, "batch_size": 4}


@pytest.mark.parametrize("case", CASES)
def test_from_rows_to_a_tuned_model_that_is_loaded_again(case, tmp_path):
    model, task, objective = CASES[case]()
    before, flags = backbone_checksum(model), [p.requires_grad for p in model.parameters()]
    space = space_of(case, model)
    options = {"budget": space.n_params // 3, "objective": objective, "progress": False} | STEPS
    result, again = search(model, task, space, **options), search(model, task, space, **options)
    assert result.gates.equals(again.gates) and result.gates["alpha"].abs().max() > 0
    assert result.config["objective"] == json.loads(json.dumps(result.config["objective"]))
    tuned = retrain(model, task, result.structure(), objective=objective, out=tmp_path / "tuned", **STEPS)
    assert backbone_checksum(model) == before and [p.requires_grad for p in model.parameters()] == flags
    assert any(float(tensor.abs().sum()) for name, tensor in tuned.tensors().items() if name.endswith("/B"))
    assert tuned.metrics["head_params"] == result.metrics["head_params"] == HEADS.get(case, 0)
    same, _, objective = CASES[case]()
    for path in tuned.learner.objective.heads:  # a head that comes fresh with every loading
        torch.nn.init.normal_(same.get_submodule(path).weight)
    loaded = load_tuned(tmp_path / "tuned", same, task, objective=objective)
    assert loaded.predict(task.test) == tuned.predict(task.test)
    assert loaded.evaluate(task.test)["score"] == pytest.approx(tuned.metrics["test"], abs=1e-6)
    expected = pytest.approx(tuned.predict(task.test), abs=1e-5) if case == "similarity" else tuned.predict(task.test)
    assert [tuned.predict([row])[0] for row in task.test] == expected
    rebuilds = case not in ("similarity", "answers", "images")  # a user's class, a function, an image processor
    how = {"objective": None if rebuilds else objective, "tokenizer": toy_tokenizer()}
    without_rows = load_tuned(tmp_path / "tuned", same, **how)
    assert without_rows.predict(task.test) == tuned.predict(task.test)
    with pytest.raises(TaskError, match=r"came without its metrics; .* load_tuned\(…, task\)"):
        without_rows.evaluate(task.test)
    with pytest.raises(ExportError, match="compared on rows of task 'mine', which has none here"):
        merge(without_rows)
    if not rebuilds:
        with pytest.raises(RunError, match=r"cannot be made from its settings; use load_tuned\(…, objective="):
            load_tuned(tmp_path / "tuned", same, task)
    own = tuned.learner.objective.own  # the objective, bound to its model
    merged, batch = merge(tuned), own.collate(own.encode(task.test))
    with torch.no_grad():
        assert merged.difference < 1e-4 and own.predict(merged.model, batch) == expected


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("case", [*HEADS, "t5", "similarity"])
def test_an_own_objective_leaves_the_library_with_its_head(case, tmp_path):
    tuned, (model, task, _) = tune(case), CASES[case]()
    for path in tuned.learner.objective.heads:  # a head that comes fresh with every loading
        torch.nn.init.normal_(model.get_submodule(path).weight)
    adapted = PeftModel.from_pretrained(model, to_peft(tuned, tmp_path / "peft")).eval()
    own = tuned.learner.objective.own
    batch = own.collate(own.encode(task.test))
    with torch.no_grad():
        with tuned.learner.attached():
            expected = float(tuned.learner.objective.loss({"inputs": batch}))
        assert float(own.loss(adapted, batch)) == pytest.approx(expected, rel=1e-5)
        assert float(own.loss(CASES[case]()[0], batch)) != pytest.approx(expected, rel=1e-5)
    save_folder(tuned, tmp_path / "folder", base="me/mine")
    code = re.search(r"```python\n(.*?)\n```", (tmp_path / "folder" / "README.md").read_text(), re.S)[1]
    assert own.__class__.__name__ in code if case in ("similarity", "answers", "images") else "objective" not in code
    assert ("from_pretrained" in code) == bool(tuned.learner.objective.heads)


@pytest.mark.parametrize("structure", ["full", "head", "zero-shot"])
def test_references_of_an_own_head(structure, tmp_path):
    model, task, objective = own_loss_case()
    before = backbone_checksum(model)
    tuned = retrain(model, task, structure, objective=objective, out=tmp_path, **STEPS)
    assert backbone_checksum(model) == before and tuned.metrics["head_params"] == 66
    assert load_tuned(tmp_path, model, task, objective=objective).predict(task.test) == tuned.predict(task.test)


def test_numbers_and_names_of_labels_are_the_same_labels():
    tokenizer, names = toy_tokenizer(), ("O", "PER")
    assert TokenClassification(tokenizer, names=names).labels([[1, "O"], []]) == [["PER", "O"], []]
    assert MultiLabel(tokenizer, names=names).labels([[1, "O"], [1]]) == [["O", "PER"], ["PER"]]
    assert ImageClassification(pixels, names=names).labels([1, "O"]) == ["PER", "O"]
    assert ImageClassification(pixels).labels([1, 0]) == [1, 0]


@pytest.mark.parametrize("order", ["unrolled", "unrolled_exact"])
def test_second_orders_pass_through_an_own_head(order):
    _, task, objective = own_loss_case()
    model = BertForSequenceClassification(BertConfig(**SMALL, attn_implementation="eager")).eval()
    space = make_space(model, "lora")
    options = {"objective": objective, "order": order, "progress": False} | STEPS
    result = search(model, task, space, budget=space.n_params // 3, **options)
    assert float(result.gates["alpha"].abs().max()) > 0 and result.metrics["stopped"] is None


def test_a_search_with_an_own_head_continues_from_its_checkpoint(tmp_path):
    model, task, objective = own_loss_case()
    space = make_space(model, "lora")
    options = {"budget": space.n_params // 3, "objective": objective, "progress": False, "batch_size": 4, "steps": 14}
    whole = search(model, task, space, **options)
    with pytest.raises(ZeroDivisionError):
        search(model, task, space, out=tmp_path, callbacks=[lambda searcher: 1 / (13 - searcher.step)], **options)
    assert (tmp_path / "checkpoint").is_dir()
    assert search(model, task, space, out=tmp_path, **options).gates.equals(whole.gates)


def test_heads_are_what_lies_beside_the_base_model():
    for model, heads in [
        (tiny_bert(), ()),
        (tiny_t5(), ()),
        (tiny_llama(), ()),
        (zoo_model("bert-mlm"), ()),
        (T5ForQuestionAnswering(tiny_t5().config), ("qa_outputs",)),
        (zoo_model("llama-classifier"), ("score",)),
        (BertForQuestionAnswering(BertConfig(**SMALL)), ("qa_outputs",)),
    ]:
        assert own_heads(model) == heads


def test_rows_to_predict_need_no_labels():
    for case, columns in {"tags": ["tokens"], "moods": ["text"], "t5": ["source"], "llama": ["source"],
                          "images": ["image"], "answers": ["question"]}.items():  # fmt: skip
        tuned = tune(case)
        rows = [{name: row[name] for name in columns} for row in tuned.task.test]
        assert tuned.predict(rows) == tuned.predict(tuned.task.test)
        with pytest.raises(TaskError, match="no probabilities"):
            tuned.predict(rows, proba=True)


def test_a_search_and_a_retraining_learn_by_the_model_s_own_head():
    names = ("input_ids", "attention_mask")
    rows = [{**{name: toy_tokenizer()(e.source)[name] for name in names}, "labels": e.label} for e in easy_task().train]
    model = bert(BertForSequenceClassification)
    task = RowTask("easy", rows[:300], rows[300:], metrics={"accuracy": exact_match}, label="labels")
    structure = random_structure(make_space(model, "lora"), "60%", seed=0)
    tuned = retrain(model, task, structure, objective=ModelLoss(), steps=150, lr=1e-2, test=False)
    assert tuned.metrics["validation"] > 0.95
    objective = tuned.learner.objective
    batch = objective.collate(objective.encode(rows[:8]))
    with torch.no_grad(), tuned.learner.attached():
        other = [torch.zeros_like(weight) for weight in objective.head_weights]
        assert float(objective.loss(batch, other)) == pytest.approx(float(torch.tensor(2.0).log()))
        assert float(objective.loss(batch)) < 0.4
        trained = float(objective.loss(batch))
        assert float(model(**batch["inputs"]).loss) == pytest.approx(trained), "its head comes with the modules"
        assert float(tuned.model(**batch["inputs"]).loss) == pytest.approx(trained)
    with torch.no_grad():
        assert float(model(**batch["inputs"]).loss) > trained + 0.1, "its own head again"
        assert float(tuned.model(**batch["inputs"]).loss) == pytest.approx(trained)


@torch.no_grad()
def test_the_loss_of_a_decoder_is_that_of_the_target_alone_and_generation_is_greedy():
    model, task, objective = CASES["llama"]()
    encoded = objective.encode(task.test)
    losses, texts = [], []
    for row in encoded:
        ids = torch.tensor([row["prompt"] + row["continuation"]])
        labels = torch.tensor([[-100] * len(row["prompt"]) + row["continuation"]])
        losses += [float(model(input_ids=ids, labels=labels).loss)] * len(row["continuation"])
        tokens = list(row["prompt"])
        for _ in range(4):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] in (model.config.eos_token_id, toy_tokenizer().eos_token_id):
                break
        texts.append(toy_tokenizer().decode(tokens[len(row["prompt"]) :], skip_special_tokens=True))
    batch = objective.collate(encoded)
    assert float(objective.loss(model, batch)) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert objective.predict(model, batch) == texts


def test_a_model_that_cannot_write_is_refused_before_the_first_pass(monkeypatch):
    model, task, objective = CASES["t5"]()
    monkeypatch.setattr(model, "generate", lambda **options: 1 / 0 if "input_ids" not in options else [][0])
    with pytest.raises(SearchError, match="T5ForConditionalGeneration cannot generate: list index out of range"):
        objective_of(model, task, objective)


def test_texts_are_cut_to_the_positions_of_the_model_which_is_said_once():
    """40 positions of BERT, 80 of the others; a decoder keeps room for the target."""
    tokenizer, long = toy_tokenizer(), " ".join(["w1"] * 90)
    texts = ["w2 w3", "w4", long] * 8
    for make, build, length in [
        (lambda: bert(BertForSequenceClassification), lambda t: ({"text": t, "labels": [0]}), 40),
        (lambda: bert(BertForTokenClassification), lambda t: {"tokens": t.split(), "tags": [0] * len(t.split())}, 40),
        (lambda: zoo_model("bart"), lambda t: {"source": t, "target": t}, 80),
        (lambda: zoo_model("gpt2"), lambda t: {"source": t, "target": t}, 76),
    ]:
        rows = [build(text) for text in texts]
        label = next(name for name in ("labels", "tags", "target") if name in rows[0])
        kinds = {"labels": MultiLabel(tokenizer, names=("a", "b")), "tags": TokenClassification(tokenizer),
                 "target": Generation(tokenizer, max_target=4)}  # fmt: skip
        task = RowTask("mine", rows[:12], rows[12:], metrics={"n": lambda p, q: len(p)}, label=label)
        objective = objective_of(make(), task, kinds[label])
        with pytest.warns(
            UserWarning, match=rf"task 'mine': 8 of 24 rows \(33.3%\) have more than {length} tok"
        ) as said:
            encoded = objective.encode(task.validation)
        assert len(said) == 1 and "the model has no more positions" in str(said[0].message)
        assert max(len(row["input_ids"]) for row in encoded) == length
        assert objective.evaluate(task.validation) == {"n": 12}
        batch = objective.collate(objective.encode(task.train[:6]))
        assert math.isfinite(float(objective.loss(batch).detach()))
        short = type(kinds[label]) is MultiLabel and MultiLabel(tokenizer, names=("a", "b"), max_length=9)
        if short:
            with pytest.warns(
                UserWarning, match=r"more than 9 tokens and are cut; MultiLabel\(…, max_length=…\) reads"
            ):
                objective_of(make(), task, short).encode(task.train)


def test_of_two_texts_the_longer_one_is_cut():
    objective = MultiLabel(toy_tokenizer(), names=("a", "b"), text=("one", "two"), max_length=20)
    with pytest.warns(UserWarning, match="have more than 20 tokens"):
        row = objective.encode([{"one": "w1 " * 50, "two": "w2 w3"}])[0]["input_ids"]
    assert [row.count(toy_tokenizer().convert_tokens_to_ids(word)) for word in ("w1", "w2", "w3")] == [17, 1, 1]
    with pytest.raises(TaskError, match="one column or two"):
        MultiLabel(toy_tokenizer(), names=("a", "b"), text=("a", "b", "c"))


def test_rows_of_a_half_have_their_numbers():
    rows = [{"text": "w1", "labels": []} for _ in range(20)]
    rows[13] = {"text": "", "labels": []}
    task = RowTask("mine", rows, rows[:2], metrics={"f1": f1_micro}, label="labels")
    half = next(half for half in task.search_split(0) if 14 in half.numbers)
    objective = objective_of(bert(BertForSequenceClassification), task, MultiLabel(toy_tokenizer(), names=("a", "b")))
    for part in (half, task.train):
        with pytest.raises(TaskError, match="train row 14: column 'text' must hold a text; got ''"):
            objective.encode(part)


def test_one_objective_serves_several_models():
    rows = [{**toy_tokenizer()(text), "labels": k % 2} for k, text in enumerate(sentences(24))]
    shared, task = ModelLoss(), task_of(rows)
    one, two = (
        objective_of(bert(kind), task, shared) for kind in (BertForSequenceClassification, BertForTokenClassification)
    )
    assert one.own.n_classes == two.own.n_classes == 2 and one.own is not two.own and shared.model is None
    assert len(one.predict(task.test)) == 4


def test_new_rows_come_in_lists_and_tables():
    tuned = tune("moods")
    rows = [{"text": "w1"}, {"text": "w2"}]
    assert tuned.predict(pd.DataFrame(rows)) == tuned.predict(rows)
    for wrong in ("w1", rows[0]):
        with pytest.raises(TaskError, match="expected a list of rows; pass"):
            tuned.predict(wrong)
    with pytest.warns(UserWarning, match=r"1 of 2 rows \(50.0%\) have more than 40 tokens"):
        tuned.predict([{"text": "w1"}, {"text": "w1 " * 60}])


def test_plain_texts_and_lists_of_words_are_rows():
    tokenizer = toy_tokenizer()
    for objective, plain, row in (
        (Generation(tokenizer, source="ask"), "w1 w2", {"ask": "w1 w2"}),
        (MultiLabel(tokenizer, names=("a", "b")), "w1 w2", {"text": "w1 w2"}),
        (MultiLabel(tokenizer, names=("a", "b"), text=("a", "b")), ("w1", "w2"), {"a": "w1", "b": "w2"}),
        (TokenClassification(tokenizer), ["w1", "w2"], {"tokens": ["w1", "w2"]}),
        (TokenClassification(tokenizer), np.array(["w1", "w2"]), {"tokens": ["w1", "w2"]}),
    ):
        assert objective.encode([plain]) == objective.encode([row])
    for objective, wrong in (
        (Generation(tokenizer), 3),
        (Generation(tokenizer), " "),
        (TokenClassification(tokenizer), "w1 w2"),
        (MultiLabel(tokenizer, names=("a", "b"), text=("a", "b")), "w1"),
    ):
        with pytest.raises(TaskError, match="row 1: column"):
            objective.encode([wrong])


def test_settings_of_a_folder_that_make_no_objective_are_refused():
    declared = {"own": "Generation", "ready": True, "head": [], "settings": Generation(toy_tokenizer()).settings}
    assert rebuilt("here", declared, toy_tokenizer()).settings == declared["settings"]
    for change, message in (
        ({"ready": False}, "cannot be made from its settings"),  # a user's class of this name
        ({"own": "exec"}, "cannot be made from its settings"),
        ({"own": ["Generation"]}, "cannot be made from its settings"),
        ({"settings": None}, "cannot be made from its settings"),
        ({"settings": {"columns": 1}}, "here has settings from which Generation cannot be made"),
        ({"settings": {"max_length": "9"}}, "max_length must be a whole number"),
        ({"own": "MultiLabel", "settings": {"names": 3}}, "here has settings from which MultiLabel cannot be made"),
    ):
        with pytest.raises(RunError, match=message):
            rebuilt("here", declared | change, toy_tokenizer())
    with pytest.raises(RunError, match="no tokenizer came with this backbone"):
        rebuilt("here", declared, None)


def test_options_that_cannot_be_used_are_refused_at_once():
    tokenizer, names = toy_tokenizer(), ("a", "b")
    for make in (lambda **o: MultiLabel(tokenizer, names=names, **o), lambda **o: TokenClassification(tokenizer, **o),
                 lambda **o: Generation(tokenizer, **o)):  # fmt: skip
        for wrong in (0, "9", 2.5, True):
            with pytest.raises(TaskError, match="max_length must be a whole number of at least 2"):
                make(max_length=wrong)
    for make in (lambda: MultiLabel(None, names=names), lambda: Generation(None)):
        with pytest.raises(TaskError, match="needs the model's tokenizer; got None"):
            make()
    with pytest.raises(TaskError, match=r"Generation reads the rows of a RowTask, not those of Task\('data'"):
        objective_of(tiny_t5(), short_task(), Generation(tokenizer))
    with pytest.raises(SearchError, match=r"T5ForConditionalGeneration writes texts; use s3pet.objectives.Generation"):
        objective_of(tiny_t5(), task_of([{"input_ids": [5], "labels": [6]}] * 24), ModelLoss())
    for wrong in ("ab", ("a", "a")):
        with pytest.raises(TaskError, match="names= must be distinct names"):
            MultiLabel(tokenizer, names=wrong)


def test_tables_are_rows_and_other_things_are_not():
    rows = [{"text": f"w{k}", "label": k % 2} for k in range(8)]
    table = RowTask("mine", pd.DataFrame(rows), rows, metrics={"score": exact_match})
    assert table.train == rows
    for wrong in ("train.csv", {"text": ["a"] * 8}, iter(rows)):
        with pytest.raises(TaskError, match=r"train is a \w+; expected a list of rows, a Dataset or a table"):
            RowTask("mine", wrong, rows, metrics={"score": exact_match})


def test_metrics_of_rows():
    assert rouge_l(["a b c d"], ["A x, c d!"]) == pytest.approx(2 * 3 / 8)
    assert rouge_l(["", "b a"], ["", "a b"]) == pytest.approx((1 + 0.5) / 2) and rouge_l(["a"], [""]) == 0
    assert exact_match([(1, 2), " a "], [[1, 2], "a"]) == 1
    assert word_accuracy([["O", None], ["O"]], [["O", "O"], ["P"]]) == pytest.approx(1 / 3)
    assert f1_micro([["a"], ["b", "c"]], [["a", "b"], ["c"]]) == pytest.approx(4 / 6) and f1_micro([[]], [[]]) == 1


def test_halves_and_fingerprints_of_rows():
    rows = [{"x": torch.ones(2) * k, "image": Image.new("L", (2, 2), k), "label": k, "n": None} for k in range(9)]
    task = RowTask("any", rows, rows[:2], metrics={"score": exact_match})
    first, second = task.search_split(3)
    assert len(first) == len(second) == 4 and not {r["label"] for r in first} & {r["label"] for r in second}
    assert [r["label"] for r in task.search_split(3)[0]] == sorted(r["label"] for r in first)
    assert [r["label"] for r in task.search_split(4)[0]] != [r["label"] for r in first]
    assert RowTask("b", rows, rows[:2], metrics={"score": exact_match}).fingerprint == task.fingerprint
    for change in ({"x": torch.ones(2) * 9}, {"image": Image.new("L", (2, 2), 99)}, {"label": True}, {"n": "None"}):
        other = RowTask("any", [*rows[:8], rows[8] | change], rows[:2], metrics={"score": exact_match})
        assert other.fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": [1, 2]}, "train has 2 rows; at least 4"),
        ({"validation": []}, "validation has 0 rows"),
        ({"metrics": {}}, "a mapping of names to functions"),
        ({"metrics": {"accuracy": "accuracy"}}, "a mapping of names to functions"),
        ({"metrics": {"loss": exact_match}}, "smaller were better"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(options, message):
    fields = {"train": [1, 2, 3, 4], "validation": [1], "metrics": {"score": exact_match}} | options
    with pytest.raises(TaskError, match=message):
        RowTask("mine", **fields)


def test_scores_that_cannot_be_computed_are_refused():
    task = RowTask("mine", [{"a": 1}] * 4, [1], metrics={"score": lambda p, q: "good"})
    with pytest.raises(TaskError, match=r"row 1 has columns \['a'\]; pass label="):
        task.labels(task.train)
    with pytest.raises(TaskError, match="must return a number, got 'good'"):
        task.score([1], [1])
    with pytest.raises(TaskError, match="0 predictions for 0 labels"):
        task.score([], [])
    with pytest.raises(
        TaskError, match=r"metric 'rouge' cannot compare predictions and labels, such as \['a'\] with 'a'"
    ):
        RowTask("mine", [1] * 4, [1], metrics={"rouge": rouge_l}).score([["a"]], ["a"])

    with pytest.raises(TaskError, match="a object in a row cannot be hashed"):
        _ = RowTask("mine", [object()] * 4, [1], metrics={"score": exact_match}).fingerprint


@pytest.mark.parametrize("label", [1.5, True, None, float("nan"), "cat", [1], -1, 2, torch.ones(2)])
def test_labels_that_are_no_classes_are_refused(label):
    with pytest.raises(TaskError, match="expected a number from 0 to 1 or one of a, b"):
        class_number("row 1", label, ("a", "b"))
    assert class_number("row 1", torch.tensor(1), ("a", "b")) == class_number("row 1", "b", ("a", "b")) == 1


@pytest.mark.parametrize(
    ("case", "row", "message"),
    [
        ("tags", {"tokens": "w1 w2", "tags": ["O", "O"]}, "must be a list of words; got 'w1 w2'"),
        ("tags", {"tokens": ["w1", "w2"], "tags": ["O"]}, "row 1 has 2 words and 1 tags"),
        ("tags", {"tokens": ["w1"], "tags": ["LOC"]}, "row 1: tag 1 is 'LOC'; expected a number from 0 to 1 or one of"),
        ("moods", {"text": "", "labels": []}, "row 1: column 'text' must hold a text; got ''"),
        ("moods", {"text": "w1", "labels": "fun"}, "must be a list of names or numbers"),
        ("t5", {"input": "w1"}, r"row 1: column 'source' is missing \(the row has \['input'\]\)"),
        ("images", {"image": "cat.png", "label": 1}, "must hold an image; got 'cat.png'"),
        (
            "images",
            {"image": Image.new("L", (32, 32)), "label": 0.5},
            "column 'label' is 0.5; expected a number from 0",
        ),
        ("own loss", {"labels": 1}, "row 1 has columns"),
        ("own loss", ("w1", 1), "row 1 is a tuple, no dict of the model's inputs"),
        ("own loss", {"input_ids": [5, 6], "labels": 7}, "row 1: labels is 7; expected a number from 0 to 1"),
        ("own loss", {"input_ids": [5, 6], "labels": True}, "row 1: labels is True; expected a number from 0 to 1"),
        ("own loss", {"input_ids": [5, 6], "labels": [1]}, r"row 1: labels is \[1\]; expected one class, or .* vector"),
        ("own loss", {"input_ids": [5] * 41, "labels": 1}, "row 1 has 41 tokens, but the model has positions for 40"),
        ("own loss", {"input_ids": [5, 64], "labels": 1}, "row 1: token has number 64, but .* ends at 63"),
        ("own loss", {"input_ids": [5.0], "labels": 1}, "row 1: input_ids must be token numbers"),
        ("own loss", {"input_ids": [], "labels": 1}, "row 1: input_ids must be token numbers, one or more"),
        ("choice", {"input_ids": [[5], [6]], "labels": 2}, "row 1: labels is 2; expected a number from 0 to 1"),
        (
            "answers",
            {"question": "w1", "start": 0, "end": 2},
            "row 1: end_positions is 2; expected a number from 0 to 1",
        ),
        ("answers", {"question": "w1", "start": 1, "end": 0}, "row 1: the answer ends before it starts"),
        ("tags", {"tokens": ["w1", " "], "tags": [0, 0]}, "must be a list of words"),
        ("tags", {"tokens": ["w1"], "tags": [2]}, "row 1: tag 1 is 2; expected a number from 0 to 1"),
        ("tags", {"tokens": ["w1"], "tags": "O"}, "row 1 has 1 words and the tags 'O'"),
        (
            "moods",
            {"text": "w1", "labels": [0, 0, 1]},
            "in which labels come twice; a vector must have one True or False",
        ),
        ("moods", {"text": "w1", "labels": "fun, sad"}, "split a text first"),
        ("moods", {"labels": []}, r"row 1: column 'text' is missing \(the row has \['labels'\]\)"),
        ("t5", {"source": "w1", "target": ""}, "row 1: column 'target' must hold a text; got ''"),
        ("images", {"image": torch.full((3, 4, 4), float("nan")), "label": 0}, "pixels that are NaN"),
        ("images", {"image": torch.zeros(2, 2, 2, 2), "label": 0}, r"got an array of shape \(2, 2, 2, 2\)"),
        ("images", {"image": {"bytes": b"", "path": ""}, "label": 0}, "holds the bytes of an image file"),
        ("images", {"image": Image.new("L", (4, 4)), "label": 2}, "expected a number from 0 to 1"),
    ],
)
def test_rows_that_cannot_be_encoded_are_named(case, row, message):
    model, task, objective = CASES[case]()
    with pytest.raises(TaskError, match=message):
        objective.bound(model, task).encode([row])


def test_choices_of_different_lengths_are_filled_up_and_different_numbers_of_them_refused():
    model, task, objective = CASES["choice"]()
    bound = objective.bound(model, task)
    rows = [{"input_ids": [[5], [6, 7, 8]], "attention_mask": [[1], [1, 1, 1]], "labels": 1}] * 3
    batch = bound.collate(bound.encode(rows))
    assert batch["input_ids"].tolist() == [[[5, 0, 0], [6, 7, 8]]] * 3
    assert batch["attention_mask"].tolist() == [[[1, 0, 0], [1, 1, 1]]] * 3
    with pytest.raises(TaskError, match="row 4 has 3 choices and row 1 has 2; all rows need as many"):
        bound.encode([*rows, {"input_ids": [[5], [6], [7]], "labels": 1}])


def test_targets_of_each_kind_are_read():
    values = [1, 1.0, np.int64(1), torch.tensor(1), np.float32(1)]
    for n_labels, expected in ((2, [1] * 5), (1, [1.0] * 5)):
        model = bert(BertForSequenceClassification, n_labels)
        rows = [{"input_ids": [5], "labels": value} for value in values]
        encoded = ModelLoss().bound(model, None).encode(rows)
        assert [row["labels"] for row in encoded] == expected
        assert {type(row["labels"]) for row in encoded} == {type(expected[0])}
    several = ModelLoss().bound(bert(BertForSequenceClassification, 3), None)
    assert several.encode([{"input_ids": [5], "labels": [1, 0, 1]}])[0]["labels"] == [1.0, 0.0, 1.0]
    for value in (math.nan, "much", True):
        with pytest.raises(TaskError, match="expected a finite number, for a model with one output"):
            ModelLoss().bound(bert(BertForSequenceClassification, 1), None).encode(
                [{"input_ids": [5], "labels": value}]
            )
    moods = MultiLabel(toy_tokenizer(), names=("a", "b", "c"))
    for value in (["a", "c"], [2, "a"], np.array([True, False, True]), [1.0, 0.0, 1.0], torch.tensor([1.0, 0.0, 1.0])):
        assert moods.encode([{"text": "w1", "labels": value}])[0]["labels"] == [1.0, 0.0, 1.0]
        assert moods.labels([value]) == [["a", "c"]]


def test_images_of_any_kind_get_the_channels_of_the_model():
    model, task, objective = CASES["images"]()
    gray = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    kinds = [Image.fromarray(gray), gray, gray[:, :, None], gray[None], np.stack([gray] * 3), torch.tensor(gray)]
    bound = objective.bound(model, task)
    pixels_of = bound.collate(bound.encode([{"image": image} for image in kinds]))["pixel_values"]
    assert pixels_of.shape == (6, 3, 32, 32) and all(torch.equal(one, pixels_of[0]) for one in pixels_of)
    with pytest.raises(TaskError, match=r"cannot read a batch of pixel_values \[1, 3, 16, 16\].*doesn't match model"):
        bound.predict(model, {"pixel_values": torch.zeros(1, 3, 16, 16)})


class Lacking:
    def encode(self, rows):
        return rows

    def collate(self, rows):
        return {"rows": torch.zeros(len(rows))}


class Wrong(Lacking):
    heads = staticmethod(lambda model: ("clasifier",))
    loss = predict = lambda self, model, batch: torch.zeros(2)


class Parametric(torch.nn.Linear, Wrong):
    def __init__(self):
        super().__init__(2, 2)


def test_objects_that_are_no_objectives_are_refused():
    model, task, objective = own_loss_case()
    for wrong, message in [
        (Lacking(), "objective Lacking lacks the methods loss, predict"),
        (ModelLoss, r"objective ModelLoss is a class; pass an object of it: ModelLoss\(…\)"),
        (3, "objective must be a mapping"),
        (Parametric(), "Parametric has parameters of its own, which would not be trained"),
        (Wrong(), "no submodule 'clasifier' as its head; nearest: 'classifier'"),
    ]:
        with pytest.raises(SearchError, match=message):
            objective_of(model, task, wrong)
    with pytest.raises(SearchError, match="BertModel takes no labels"):
        objective_of(tiny_bert(), task, objective)
    with pytest.raises(SearchError, match="BertModel writes no text"):
        objective_of(tiny_bert(), task, Generation(toy_tokenizer()))
    with pytest.raises(TaskError, match="head has 2 outputs and there are 3 names; load it with num_labels=3"):
        objective_of(model, task, MultiLabel(toy_tokenizer(), names=("a", "b", "c")))
    with pytest.raises(TaskError, match="a list is not a task"):
        objective_of(model, [], objective)
    with pytest.raises(TaskError, match="rows of another form need objective="):
        objective_of(model, task)
    wrong = objective_of(tiny_bert(), short_task(), type("Two", (Wrong,), {"heads": staticmethod(lambda model: ())})())
    with pytest.raises(SearchError, match=r"Two.loss must return a scalar tensor, .* shape \[2\]"):
        wrong.loss(wrong.collate([1, 2]))
    with pytest.raises(TaskError, match=r"Two\.predict must return one prediction for each of 3 rows; got 2"):
        wrong.predict([1, 2, 3])


def test_scores_that_are_not_finite_give_no_prediction():
    model, task, objective = own_loss_case()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(SearchError, match="logits on task 'mine' are NaN or infinite"):
        objective_of(model, task, objective).predict(task.test)


def test_what_an_own_objective_cannot_do_is_refused(tmp_path):
    tuned = tune("own loss", out=tmp_path / "tuned")
    model, task, objective = own_loss_case()
    with pytest.raises(SearchError, match=r"An object of your own goes to search, retrain and load_tuned only"):
        Population(model, task, [], Recipe(), objective)
    with pytest.raises(SearchError, match=r"An object of your own goes to search, retrain and load_tuned only"):
        compare(model, task, {"mine": tuned.structure}, objective=objective)
    with pytest.raises(RunError, match=r"was tuned with ModelLoss, got .*; use load_tuned\(…, objective=ModelLoss"):
        load_tuned(tmp_path / "tuned", model, task, objective=Similarity(None))
    with pytest.raises(StructureMismatchError, match="was tuned with objective"):
        load_tuned(tmp_path / "tuned", model, task, objective=ModelLoss(padding={"input_ids": 3}))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_text_writer_leaves_as_an_adapter_and_as_a_plain_model(tmp_path):
    tuned = tune("t5")
    model, task, objective = CASES["t5"]()
    batch = objective.collate(objective.encode(task.test))
    merge(tuned).save(tmp_path / "plain")
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path / "plain").eval()
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").vocab_size == toy_tokenizer().vocab_size
    adapted = PeftModel.from_pretrained(model, to_peft(tuned, tmp_path / "peft")).eval()
    with torch.no_grad(), tuned.learner.attached():
        expected = float(tuned.learner.objective.loss(tuned.learner.objective.collate(objective.encode(task.test))))
    with torch.no_grad():
        for other in (plain, adapted):
            assert float(objective.loss(other, batch)) == pytest.approx(expected, rel=1e-5)
