"""How a backbone learns a task: settings, batches, label-word likelihoods, heads, regression, scores that are NaN."""

import copy
import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny import tiny_bert, tiny_llama, tiny_roberta, tiny_t5
from toy import short_task, toy_regression, toy_task, toy_tokenizer
from transformers import BertModel, DPRConfig, DPRContextEncoder
from zoo import zoo_model

from s3pet.backbones import preserved
from s3pet.errors import SearchError, TaskError
from s3pet.objectives import ObjectiveSettings, Stream, derive, make_objective
from s3pet.records import check_fields, recorded
from s3pet.tasks import load_task


def rows_of(lengths):
    return [{"input_ids": [index] * length} for index, length in enumerate(lengths)]


def epoch_of(stream, epoch, n_batches):
    return [[row["input_ids"][0] for row in stream(epoch * n_batches + step)] for step in range(n_batches)]


@pytest.mark.parametrize(("n_rows", "size"), [(10, 5), (103, 8), (3, 8), (64, 1)])
def test_streams_visit_every_row_once_an_epoch(n_rows, size):
    draw = random.Random(0)
    rows = rows_of([draw.randint(1, 30) for _ in range(n_rows)])
    stream, n_batches = Stream(rows, size, seed=3), -(-n_rows // min(size, n_rows))
    epochs = [epoch_of(stream, epoch, n_batches) for epoch in range(3)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(n_rows))
        assert sorted(map(len, batches))[1:] == [min(size, n_rows)] * (n_batches - 1), "at most one is smaller"
    assert stream(1) == Stream(rows, size, seed=3)(1), "a function of the step"
    assert [rows[index] for index in stream.indices(1)] == stream(1)
    if n_batches > 1:
        assert epochs[0] != epochs[1]
        assert epochs[0] != epoch_of(Stream(rows, size, seed=4), 0, n_batches)


def test_rows_of_a_batch_are_of_similar_length_but_not_always_the_same_ones():
    draw = random.Random(1)
    rows = rows_of([round(draw.lognormvariate(3, 0.7)) + 2 for _ in range(1000)])
    stream, widths = Stream(rows, 16, seed=0), []
    for step in range(63):
        lengths = [len(row["input_ids"]) for row in stream(step)]
        widths.append((max(lengths) * len(lengths), sum(lengths), max(lengths)))
    padded, used, _ = (sum(column) for column in zip(*widths, strict=True))
    order = list(range(1000))
    draw.shuffle(order)
    shuffled = [[len(rows[row]["input_ids"]) for row in order[at : at + 16]] for at in range(0, 1000, 16)]
    assert padded / used < 1.5 < 2 < sum(max(lengths) * len(lengths) for lengths in shuffled) / used
    longest = [width for *_, width in widths]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True), "long and short ones take turns"
    neighbours = [
        {frozenset((a, b)) for batch in epoch_of(stream, epoch, 63) for a in batch for b in batch if a < b}
        for epoch in (0, 1)
    ]
    assert len(neighbours[0] & neighbours[1]) / len(neighbours[0]) < 0.15, "rows meet others in another epoch"


def test_derived_seeds_do_not_collide():
    seeds = {derive(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000


@dataclass(frozen=True)
class Record:
    count: int = 1
    rate: float | None = None
    word: str = "a"

    def __post_init__(self):
        check_fields(self, positive=("rate",), least={"count": 0}, choices={"word": ("a", "b")})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 2.0}, "count must be a whole number, got 2.0"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": None}, "count must be a whole number, got None"),
        ({"count": np.bool_(True)}, "count must be a whole number"),
        ({"count": -1}, "count must be >= 0, got -1"),
        ({"rate": "1e-3"}, "rate must be a finite number or None, got '1e-3'"),
        ({"rate": float("nan")}, "rate must be a finite number"),
        ({"rate": False}, "rate must be a finite number"),
        ({"rate": 0}, "rate must be > 0, got 0"),
        ({"word": 3}, "word must be a string, got 3"),
        ({"word": "c"}, "word='c' is not one of a, b"),
    ],
)
def test_fields_of_a_wrong_type_or_range_are_refused(fields, message):
    with pytest.raises(SearchError, match=message):
        Record(**fields)


def test_numpy_numbers_become_those_of_python():
    record = Record(np.int64(3), np.float32(0.5))
    assert (record.count, record.rate) == (3, 0.5) and type(record.count) is int and type(record.rate) is float
    assert type(Record(rate=1).rate) is float and Record().rate is None


def test_settings_come_from_a_mapping_and_are_resolved():
    record = ObjectiveSettings(max_length=64, loss="lm")
    assert ObjectiveSettings.of(record) is record
    assert ObjectiveSettings.of({"max_length": 64, "loss": "lm"}) == record
    assert ObjectiveSettings.of(None) == ObjectiveSettings()
    assert make_objective(tiny_bert(), toy_task(), {"max_length": 9}).settings == ObjectiveSettings(9, "pooler")
    assert make_objective(tiny_t5(), toy_task(), record).settings == record
    for bad in ({"length": 3}, "mean", 3):
        with pytest.raises(SearchError, match="a mapping of some of max_length, pooling, loss, precision"):
            ObjectiveSettings.of(bad)


@pytest.mark.parametrize(
    ("make_model", "settings", "message"),
    [
        (tiny_bert, {"pooling": "max"}, "pooling='max' is not one of None, pooler, first, mean"),
        (tiny_t5, {"loss": "hinge"}, "loss='hinge' is not one of choice, lm"),
        (tiny_t5, {"precision": "int8"}, "precision='int8' is not one of float32, bfloat16"),
        (tiny_t5, {"max_length": 64.0}, "max_length must be a whole number"),
        (tiny_t5, {"max_length": 1}, "max_length must be >= 2"),
        (tiny_t5, {"pooling": "mean"}, "this encoder-decoder backbone has no head"),
        (tiny_llama, {"pooling": "first"}, "this decoder backbone has no head"),
        (tiny_bert, {"loss": "lm"}, "an encoder learns by its head"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(make_model, settings, message):
    with pytest.raises(SearchError, match=message):
        make_objective(make_model(), toy_task(), settings)


def test_a_pooler_that_is_not_there_is_refused():
    model = tiny_bert()
    model.pooler = None
    assert make_objective(model, toy_task()).settings.pooling == "mean"
    with pytest.raises(SearchError, match="has no pooler"):
        make_objective(model, toy_task(), {"pooling": "pooler"})


def test_flags_are_restored_after_any_exit():
    model = tiny_bert()
    model.encoder.layer[0].train()
    model.pooler.dense.bias.requires_grad_(False)
    modes = [part.training for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def interrupted():
        with preserved(model):
            model.train().requires_grad_(False)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
def test_predicting_keeps_the_mode_of_every_submodule(make_model, monkeypatch):
    model, task = make_model(), toy_task()
    objective = make_objective(model, task)
    list(model.modules())[5].train()
    if objective.head is not None:
        objective.head.dropout.eval()
    modes = [part.training for module in (objective, model) for part in module.modules()]
    objective.predict(task.test[:8])
    assert [part.training for module in (objective, model) for part in module.modules()] == modes
    monkeypatch.setattr(objective, "scores", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        objective.evaluate(task.test[:8])
    assert [part.training for module in (objective, model) for part in module.modules()] == modes


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_give_no_prediction(make_model, value):
    model, task = make_model(), toy_task()
    objective = make_objective(model, task)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "norm" in name.lower()).fill_(value)
    for call in (objective.predict, objective.evaluate):
        with pytest.raises(SearchError, match="NaN or infinite"):
            call(task.test[:4])
    assert objective.predict([]) == []


@torch.no_grad()
def test_sequence_to_sequence_scores_are_the_words_likelihoods():
    model, task = tiny_t5(), toy_task()
    objective = make_objective(model, task)
    examples = task.test[:5]
    scores = objective.scores(objective.collate(objective.encode(examples)))
    for row, example in enumerate(examples):
        for column, word in enumerate(task.label_words):
            ids = toy_tokenizer()(example.source, return_tensors="pt")
            labels = toy_tokenizer()(text_target=word, return_tensors="pt")["input_ids"]
            ids["labels"] = labels[:, :1]  # the first token tells these words apart
            assert float(scores[row, column]) == pytest.approx(-float(model(**ids).loss), rel=1e-4)


WORDS_AND_LENGTHS = [  # and how many tokens tell each from all others; one that others begin with needs an end
    (("w1 w2", "w1 w3 w4", "w1"), (2, 2, 2)),
    (("w1 w2", "w3 w4", "w5"), (1, 1, 1)),
    (("w1 w2 w3", "w1 w2 w4", "w5 w6 w7", "w1 w8 w9"), (3, 3, 1, 2)),
]


@torch.no_grad()
@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama, lambda: zoo_model("bart"), lambda: zoo_model("mbart")])
@pytest.mark.parametrize(("words", "lengths"), WORDS_AND_LENGTHS)
def test_label_words_are_scored_up_to_the_token_that_tells_them_apart(make_model, words, lengths):
    model, task = make_model(), replace(toy_task(), label_words=words, label_names=words)
    objective = make_objective(model, task)
    assert objective.n_distinct == max(lengths)
    scores = objective.scores(objective.collate(objective.encode(task.test[:5])))
    assert scores.shape == (5, len(words))
    for row, example in enumerate(task.test[:5]):
        for column, (word, length) in enumerate(zip(words, lengths, strict=True)):
            prompt, whole = toy_tokenizer()(example.source)["input_ids"], toy_tokenizer()(word)["input_ids"]
            tokens = whole[:length]
            if model.config.is_encoder_decoder:
                logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([whole])).logits[0, :length]
            else:
                logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            expected = sum(float(one.log_softmax(-1)[token]) for one, token in zip(logits, tokens, strict=True))
            assert float(scores[row, column]) == pytest.approx(expected, rel=1e-4)


def test_a_word_that_another_one_begins_with_can_be_predicted():
    """Without an end its likelihood would be that of both, so the other one would never win."""
    task = replace(toy_task(), label_words=("w1", "w1 w2"), label_names=("a", "b"))
    assert make_objective(tiny_llama(), task).scored_words == [[6, 1], [6, 7]]
    tokenizer = copy.deepcopy(toy_tokenizer())
    tokenizer.eos_token = None
    with pytest.raises(TaskError, match="another label word begins with 'w1', and the tokenizer has no end-of-seq"):
        make_objective(tiny_llama(), replace(task, tokenizer=tokenizer))


@pytest.mark.parametrize(
    "name", ["t5", "t5-gated", "mt5", "longt5", "switch", "bart", "mbart", "marian", "m2m100", "led"]
)
def test_an_encoder_decoder_writes_all_label_words_in_one_pass(name):
    words = tuple(f"w{a} w{b} w{c}" for a in (1, 2) for b in (3, 4, 5) for c in (6, 7))
    model, task = zoo_model(name), replace(toy_task(), label_words=words, label_names=words)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # so that scores differ, by their positions, too
    objective = make_objective(model, task).eval()
    assert objective.in_one_pass and objective.n_sequences == 2, "eight nodes are as many logits as two words alone"
    batch = objective.collate(objective.encode(task.test[:5]))
    lengths = []
    model.get_decoder().register_forward_hook(lambda part, inputs, output: lengths.append(output[0].shape[:2].numel()))
    gradients = []
    for scores in (objective.scores, objective.scores_alone):
        scores(batch).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert lengths == [5 * (1 + 2 + 6), 5 * 12 * 3], "a start, two first words and six second ones"
    for key, gradient in gradients[0].items():
        assert float((gradient - gradients[1][key]).norm()) <= 1e-3 * float(gradient.norm()) + 1e-6, key
    with torch.no_grad():
        torch.testing.assert_close(objective.scores(batch), objective.scores_alone(batch), rtol=1e-5, atol=1e-5)
        assert float(objective.scores(batch).std(1).min()) > 0.01


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama])
def test_label_words_that_are_the_same_tokens_are_refused(make_model):
    task = replace(toy_task(), label_words=("zebra", "lion"), label_names=("zebra", "lion"))  # both unknown
    with pytest.raises(TaskError, match="not distinct tokens"):
        make_objective(make_model(), task)


@torch.no_grad()
def test_causal_scores_are_the_words_likelihoods():
    model, task = tiny_llama(), toy_task()
    objective = make_objective(model, task)
    examples = task.test[:5]
    scores = objective.scores(objective.collate(objective.encode(examples)))
    for row, example in enumerate(examples):
        prompt = toy_tokenizer()(example.source)["input_ids"]
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        for column, word in enumerate(task.label_words):
            (token,) = toy_tokenizer()(word, add_special_tokens=False)["input_ids"]
            assert float(scores[row, column]) == pytest.approx(float(logits[token]), rel=1e-4)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama])
def test_choice_is_the_cross_entropy_of_the_scores_and_lm_is_the_word_s_own(make_model):
    model, task = make_model(), toy_task()
    choice, lm = (make_objective(model, task, {"loss": loss}) for loss in ("choice", "lm"))
    batch = choice.collate(choice.encode(task.test[:8]))
    with torch.no_grad():
        scores = choice.scores(batch)
        right = scores.gather(1, batch["target"][:, None]).squeeze(1)
        assert float(choice.loss(batch)) == pytest.approx(float((scores.logsumexp(1) - right).mean()), rel=1e-5)
        choice.scored_words = choice.words  # with the end token of an encoder-decoder
        right = choice.scores_alone(batch).gather(1, batch["target"][:, None])
        n_tokens = 2 if make_model is tiny_t5 else 1
        assert float(lm.loss(batch)) == pytest.approx(-float(right.mean()) / n_tokens, rel=1e-4)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_roberta, tiny_llama])
def test_predictions_do_not_depend_on_batching_or_order(make_model):
    task = toy_task()
    objective = make_objective(make_model(), task)
    whole = objective.predict(task.test, batch_size=64)
    assert objective.predict(task.test, batch_size=7) == whole
    assert objective.predict(task.test[::-1]) == whole[::-1]
    assert set(whole) <= {0, 1}
    assert 0 <= objective.evaluate(task.test)["accuracy"] <= 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "opt", "gpt-neo"])
def test_a_decoder_reads_a_prompt_once_for_all_label_words(name):
    words = ("w1 w2", "w1 w3 w4", "w5", "w1 w3 w6", "w6 w2", "w6 w1")
    task = replace(toy_task(), label_words=words, label_names=words)
    model, lengths = zoo_model(name), []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # so that scores differ
    examples = [replace(example, source=" ".join(["w7"] * (k + 3))) for k, example in enumerate(task.test[:5])]
    objective = make_objective(model, task).eval()
    batch = objective.collate(objective.encode(examples))
    assert objective.n_distinct == 3 and objective.in_one_pass
    head = next(part for part in model.modules() if getattr(part, "out_features", 0) == 64)
    head.register_forward_hook(lambda part, inputs, output: lengths.append(inputs[0].shape[:2].numel()))
    objective.scores(batch).square().mean().backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    objective.scores_alone(batch).square().mean().backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(objective.scores(batch), objective.scores_alone(batch), rtol=1e-5, atol=1e-5)
        assert float(objective.scores(batch).std(1).min()) > 0.01
    if name != "opt":  # which has no logits_to_keep
        assert lengths[0] == 5 * (5 + 3), "five ends of prompts and three inner nodes: w1, w1 w3, w6"


@pytest.mark.parametrize("name", ["bloom", "mamba", "gemma3"])
def test_a_decoder_that_cannot_read_a_tree_of_words_reads_each_alone(name):
    words = ("w1 w2", "w1 w3", "w5")
    model = zoo_model(name)
    if name == "gemma3":
        model.config.sliding_window = 64  # below the length of an input
    objective = make_objective(model, replace(toy_task(), label_words=words, label_names=words))
    assert (objective.in_one_pass, objective.n_sequences) == (False, 3)
    assert len(objective.predict(toy_task().test[:4])) == 4


@pytest.mark.parametrize("make_model", [lambda: zoo_model("umt5"), lambda: zoo_model("bloom")])
def test_no_more_sequences_than_the_batch_size_are_scored_at_once(make_model, monkeypatch):
    words = tuple(f"w1 w{k}" for k in range(2, 12))
    objective = make_objective(make_model(), replace(toy_task(), label_words=words, label_names=words))
    sizes, scores = [], objective.scores
    monkeypatch.setattr(objective, "scores", lambda batch: sizes.append(len(batch["target"])) or scores(batch))
    whole = objective.predict(toy_task().test[:24])
    assert sizes == [12, 12], "128 // 10 rows, each with ten words"
    objective.batch_size = 20
    assert objective.predict(toy_task().test[:4]) == whole[:4] and sizes[2:] == [2, 2]


@pytest.mark.parametrize("pooling", ["pooler", "first", "mean"])
def test_the_head_is_the_standard_one_and_may_run_with_other_weights(pooling):
    model, task = tiny_bert(), toy_task()
    objective = make_objective(model, task, {"pooling": pooling}).eval()
    assert objective.head_params == 32 * 2 + 2
    batch = objective.collate(objective.encode(task.test[:6]))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
        hidden = output.last_hidden_state
        mean = torch.stack([row[keep.bool()].mean(0) for row, keep in zip(hidden, mask, strict=True)])
        pooled = {"pooler": output.pooler_output, "first": hidden[:, 0], "mean": mean}[pooling]
        torch.testing.assert_close(objective.scores(batch), objective.head.out(pooled))
        other = [torch.zeros_like(weight) for weight in objective.head_weights]
        assert float(objective.loss(batch, other)) == pytest.approx(math.log(2))


def test_heads_are_seeded_and_leave_the_random_state_alone():
    model, task = tiny_bert(), toy_task()
    state = torch.get_rng_state()
    first, again, other = (make_objective(model, task, seed=seed).head.out.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pooler_without_weights_of_its_own_is_not_used():
    model = tiny_bert()
    model.s3pet_pooler_is_fresh = True
    assert make_objective(model, toy_task()).settings.pooling == "mean"


def test_regression_by_head_and_by_words():
    task = toy_regression()
    head = make_objective(tiny_bert(), task).eval()
    batch = head.collate(head.encode(task.test[:4]))
    with torch.no_grad():
        values = head.scores(batch).squeeze(1)
        expected = ((values - torch.tensor([example.label for example in task.test[:4]])) ** 2).mean()
        assert float(head.loss(batch)) == pytest.approx(float(expected), rel=1e-5)
        start = float(head.head.out.bias)  # the training split's mean, so that nothing has to learn it
        assert start == pytest.approx(sum(example.label for example in task.train) / len(task.train), rel=1e-6)
        assert abs(float(values.mean()) - start) < 0.2
    words = make_objective(tiny_t5(), task)
    assert set(words.predict(task.test)) <= set(task.label_values)
    assert [task.label_values[row["target"]] for row in words.encode(task.test[:3])] == [e.label for e in task.test[:3]]


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_balanced_class_weights_make_all_classes_count_the_same(make_model):
    part = [{"sentence1": f"w{k}", "label": int(k % 5 == 0)} for k in range(20)]
    task = load_task({"train": part, "validation": part, "test": part}, toy_tokenizer(), label_words=("no", "yes"))
    plain, weighted = (make_objective(make_model(), task, {"class_weights": kind}) for kind in (None, "balanced"))
    batch = plain.collate(plain.encode(task.train))
    with torch.no_grad():
        scores = plain.eval().scores(batch)
        each = plain.losses(scores, batch["target"])
        means = [each[batch["target"] == label].mean() for label in (0, 1)]
        torch.testing.assert_close(weighted.losses(scores, batch["target"], "mean"), sum(means) / 2)
        torch.testing.assert_close(weighted.losses(scores, batch["target"]).mean(), sum(means) / 2)
    assert "class_weights" not in recorded(plain.settings), "keys of earlier runs stay"
    assert recorded(weighted.settings)["class_weights"] == "balanced"
    assert make_objective(make_model(), replace(task, train=()), {"class_weights": "balanced"}).class_weights is None


def test_class_weights_need_classes_that_are_compared():
    with pytest.raises(TaskError, match="a regression; class weights are for classes"):
        make_objective(tiny_bert(), toy_regression(), {"class_weights": "balanced"})
    with pytest.raises(SearchError, match="class_weights go with loss='choice'"):
        make_objective(tiny_t5(), toy_task(), {"class_weights": "balanced", "loss": "lm"})
    with pytest.raises(SearchError, match="class_weights='even' is not one of None, balanced"):
        make_objective(tiny_t5(), toy_task(), {"class_weights": "even"})


def test_a_task_without_tokenizer_says_how_to_give_one():
    rows = [{"sentence1": "w1 w2", "label": k % 2} for k in range(20)]
    with pytest.raises(TaskError, match="has no tokenizer"):
        make_objective(tiny_t5(), load_task({"train": rows, "validation": rows, "test": rows}))


class Projected(BertModel):
    """An encoder whose output is narrower than its layers, as of sentence encoders with a projection."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        states = output.last_hidden_state[..., :20]
        return type(output)(last_hidden_state=states, pooler_output=output.pooler_output[..., :12])


@pytest.mark.parametrize(("pooling", "width"), [("pooler", 12), ("first", 20), ("mean", 20)])
def test_the_head_is_as_wide_as_what_the_encoder_returns(pooling, width):
    model = tiny_bert()
    model.__class__ = Projected
    objective = make_objective(model, short_task(), {"pooling": pooling})
    assert objective.head.out.in_features == width
    assert objective.score_rows(short_task().test).shape == (8, 2)


def test_an_encoder_without_the_states_that_are_pooled_is_refused_at_once():
    config = DPRConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(SearchError, match=r"reads last_hidden_state, but this encoder returns .*objective of your own"):
        make_objective(DPRContextEncoder(config), short_task())
