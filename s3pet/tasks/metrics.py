"""The metrics of tasks, computed by scikit-learn and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from s3pet.errors import TaskError, check_finite

CLASS_METRICS = ("accuracy", "f1", "f1_macro", "matthews")
VALUE_METRICS = ("pearson", "spearman")


def compute_metric(name: str, predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Compute one metric of class indices (``f1``: class 1 is positive) or of values.

    A correlation with constant predictions or labels is undefined; it is 0. Raises DivergedError if a prediction is not
    finite.
    """
    from scipy import stats
    from sklearn import metrics

    for value in predictions:
        check_finite("predictions are", value)
    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predictions))
    if name in ("f1", "f1_macro"):
        average = "binary" if name == "f1" else "macro"
        return float(metrics.f1_score(labels, predictions, average=average, zero_division=0))
    if len(set(predictions)) < 2 or len(set(labels)) < 2:
        return 0.0
    if name == "matthews":
        return float(metrics.matthews_corrcoef(labels, predictions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns about nearly constant predictions
        value = float((stats.pearsonr if name == "pearson" else stats.spearmanr)(predictions, labels).statistic)
    return 0.0 if value != value else value


def choose_metrics(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the metrics (the main one first) and whether the task is a regression; TaskError if they do not fit."""
    metrics, regression = spec.get("metrics") or (), spec.get("regression")
    metrics = tuple(dict.fromkeys([spec["metric"], *metrics] if spec.get("metric") else metrics))
    regression = bool(metrics and metrics[0] in VALUE_METRICS) if regression is None else bool(regression)
    suitable = VALUE_METRICS if regression else CLASS_METRICS
    for metric in metrics:
        if metric not in suitable:
            kind = "regression" if regression else "classification"
            raise TaskError(f"metric {metric!r} is not one of {', '.join(suitable)}, the metrics of a {kind}")
    return metrics or suitable[:1], regression
