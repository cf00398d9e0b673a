"""Metrics against closed forms, and for degenerate predictions."""

import math

import numpy as np
import pytest
import torch
from task_data import data

from s3pet.errors import DivergedError, TaskError
from s3pet.tasks import load_task


def test_metrics_against_closed_forms():
    tp, fp, fn, tn = 6, 2, 3, 9
    predictions, labels = [1] * (tp + fp) + [0] * (fn + tn), [1] * tp + [0] * fp + [1] * fn + [0] * tn
    f1, f0 = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    expected = {
        "accuracy": (tp + tn) / 20,
        "f1": f1,
        "f1_macro": (f1 + f0) / 2,
        "matthews": (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
    }
    for name, value in expected.items():
        assert load_task(data(), metric=name).score(predictions, labels) == {name: pytest.approx(value)}
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 12.0]
    task = load_task(data(labels=(0.0, 1.5)), metrics=("pearson", "spearman"))
    assert task.score(x, y) == {"pearson": pytest.approx(19 / math.sqrt(5 * 73)), "spearman": pytest.approx(1.0)}
    assert list(load_task(data(), metrics=("f1", "accuracy"), metric="accuracy").score([1], [1])) == ["accuracy", "f1"]


def test_scores_of_degenerate_predictions():
    assert load_task(data(), metrics=("matthews", "f1")).score([0] * 4, [0, 1, 0, 1]) == {"matthews": 0.0, "f1": 0.0}
    assert load_task(data(), metric="matthews").score([1] * 4, [1] * 4) == {"matthews": 0.0}
    task = load_task(data(labels=(0.0, 1.5)), metrics=("pearson", "spearman"))
    assert task.score([2.5] * 4, [0.0, 1.0, 2.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert task.score([1.0, 1.0 + 1e-16, 1.0 + 3e-16, 1.0], [0.0, 1.0, 2.0, 3.0])["pearson"] == pytest.approx(0, abs=1)
    with pytest.raises(DivergedError, match="predictions are NaN or infinite"):
        task.score([math.nan, 1.0], [0.0, 1.0])
    with pytest.raises(TaskError, match="1 predictions for 2 labels"):
        task.score([1.0], [1.0, 2.0])
    with pytest.raises(TaskError, match="0 predictions"):
        task.score([], [])


def test_scores_take_arrays_and_tensors():

    task = load_task(data())
    assert task.score(torch.tensor([0, 1]), np.array([0, 0])) == {"accuracy": 0.5}
