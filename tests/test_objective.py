"""How a backbone learns a task: label-word likelihoods against the plain forward pass, heads, regression."""

import math

import pytest
import torch
from tiny import tiny_bert, tiny_llama, tiny_roberta, tiny_t5
from toy import toy_regression, toy_task, toy_tokenizer

from s3pet.errors import TaskError
from s3pet.objective import make_objective
from s3pet.tasks import load_task


@torch.no_grad()
def test_sequence_to_sequence_scores_are_the_words_likelihoods():
    model, task = tiny_t5(), toy_task()
    objective = make_objective(model, task)
    examples = task.test[:5]
    found = objective.scores(objective.collate(objective.encode(examples)))
    for row, example in enumerate(examples):
        for column, word in enumerate(task.label_words):
            ids = toy_tokenizer()(example.source, return_tensors="pt")
            labels = toy_tokenizer()(text_target=word, return_tensors="pt")["input_ids"]
            loss = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], labels=labels).loss
            assert float(found[row, column]) == pytest.approx(-float(loss) * labels.shape[1], rel=1e-4)


@torch.no_grad()
def test_causal_scores_are_the_words_likelihoods():
    model, task = tiny_llama(), toy_task()
    objective = make_objective(model, task)
    examples = task.test[:5]
    found = objective.scores(objective.collate(objective.encode(examples)))
    for row, example in enumerate(examples):
        prompt = toy_tokenizer()(example.source)["input_ids"]
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        for column, word in enumerate(task.label_words):
            (token,) = toy_tokenizer()(word, add_special_tokens=False)["input_ids"]
            assert float(found[row, column]) == pytest.approx(float(logits[token]), rel=1e-4)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama])
def test_choice_is_the_cross_entropy_of_the_scores_and_lm_is_the_word_s_own(make_model):
    model, task = make_model(), toy_task()
    choice, lm = (make_objective(model, task, loss=loss) for loss in ("choice", "lm"))
    batch = choice.collate(choice.encode(task.test[:8]))
    with torch.no_grad():
        scores = choice.scores(batch)
        right = scores.gather(1, batch["target"][:, None]).squeeze(1)
        assert float(choice.loss(batch)) == pytest.approx(float((scores.logsumexp(1) - right).mean()), rel=1e-5)
        tokens = 2 if make_model is tiny_t5 else 1  # the word, and the end token of an encoder-decoder
        assert float(lm.loss(batch)) == pytest.approx(-float(right.mean()) / tokens, rel=1e-4)
    with pytest.raises(ValueError, match="not one of choice"):
        make_objective(model, task, loss="hinge")


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_roberta, tiny_llama])
def test_predictions_do_not_depend_on_batching_or_order(make_model):
    task = toy_task()
    objective = make_objective(make_model(), task)
    whole = objective.predict(task.test, batch_size=64)
    assert objective.predict(task.test, batch_size=7) == whole
    assert objective.predict(task.test[::-1]) == whole[::-1]
    assert set(whole) <= {0, 1}
    assert 0 <= objective.evaluate(task.test)["accuracy"] <= 1


@pytest.mark.parametrize("pooling", ["pooler", "first", "mean"])
def test_the_head_is_the_standard_one_and_may_run_with_other_weights(pooling):
    model, task = tiny_bert(), toy_task()
    objective = make_objective(model, task, pooling=pooling).eval()
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
    with pytest.raises(ValueError, match="not one of pooler"):
        make_objective(model, task, pooling="max")


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
    assert make_objective(model, toy_task()).head.pooling == "mean"


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


def test_a_task_without_tokenizer_says_how_to_give_one():
    rows = [{"sentence1": "w1 w2", "label": k % 2} for k in range(20)]
    with pytest.raises(TaskError, match="has no tokenizer"):
        make_objective(tiny_t5(), load_task({"train": rows, "validation": rows, "test": rows}))
