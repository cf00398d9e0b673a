"""Scores of structures predicted from their candidates, with errors that were seen on other structures.

Features of a structure: which candidates it has; its parameters; in each stack the number of layers with a LoRA; count
and parameters at each place (stack × block × kind of site × PET module); in each layer the parameters and whether
there is a LoRA; and, where solo utilities are known, their sum and maximum in each layer.

Errors come from cross-validation over *families* of structures: near copies, which share at least half of their
candidates, and structures that were derived from each other are never on both sides. The standard error of a prediction
is proportional to √(s² + f²), where s is the standard deviation over the trees of the forest and f a constant; the
factor is such that held-out errors have a mean square of 1 in these units. So it contains the variance between
retrainings.

`MODELS` keeps those that were compared (``data/bench/README.md``), so that a larger table can decide anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from s3pet.errors import StudyError
from s3pet.files.kinds import one_of
from s3pet.space import Space
from s3pet.utility import candidate_names

FOLDS = 10
FLOOR = 0.5  # of the standard deviation of scores: the least part of an error that does not depend on the structure
SIMILAR = 0.5  # Jaccard index from which two structures are near copies
NEARBY = 0.99  # quantile of the table's own distances to the nearest other structure


def _make(name: str) -> Any:
    """One of `MODELS`, not fitted; scikit-learn is imported where it is used, because that takes a second."""
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    forest: dict[str, Any] = {"n_estimators": 100, "min_samples_leaf": 3, "max_features": 0.5, "random_state": 0}
    kernel = ConstantKernel(1.0) * RBF(10.0, (1.0, 1e3)) + WhiteKernel(0.5, (1e-3, 1e1))
    models = {
        "ridge": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 16))),
        "random forest": RandomForestRegressor(**forest),
        "extra trees": ExtraTreesRegressor(**forest),
        "gaussian process": make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True)),
    }
    return models[name]


MODELS = {name: partial(_make, name) for name in ("ridge", "random forest", "extra trees", "gaussian process")}
MODEL = "extra trees"


def presence(space: Space, structures: Sequence[Sequence[str]]) -> np.ndarray:
    """Which candidates each structure (its candidates' names) has, bool [n_structures, n_candidates]."""
    number = {name: index for index, name in enumerate(space.names)}
    has = np.zeros((len(structures), len(space)), dtype=bool)
    for row, names in zip(has, structures, strict=True):
        row[[number[name] for name in names]] = True
    return has


def jaccard(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jaccard index of every structure of one with every structure of the other, [n_one, n_other]."""
    shared = one.astype(float) @ other.astype(float).T
    return shared / np.maximum(one.sum(1)[:, None] + other.sum(1)[None, :] - shared, 1)


def families(has: np.ndarray, parents: Sequence[int | None]) -> np.ndarray:
    """Number of each structure's family [n_structures].

    Members of a family are linked by near copies (`SIMILAR`) or by descent; ``parents`` holds the index of the
    structure each was derived from, or None.
    """
    linked = jaccard(has, has) >= SIMILAR
    for child, parent in enumerate(parents):
        if parent is not None:
            linked[child, parent] = True
    return connected_components(linked, directed=False)[1]


def lora_layers(space: Space, has: np.ndarray) -> pd.DataFrame:
    """Per stack, in the order of the model, the number of layers with a LoRA, [n_structures, n_stacks]."""
    table, columns = space.table(), {}
    inside = table[table["layer"].notna()]
    for stack in inside["stack"].unique():
        layers = inside[inside["stack"].eq(stack) & inside["pet"].eq("lora")].groupby("layer").groups.values()
        columns[f"{stack} layers with a lora"] = sum((has[:, i].any(1) for i in layers), np.zeros(len(has)))
    return pd.DataFrame(columns)


def places(space: Space) -> pd.Series:
    """Where each candidate acts, with what: stack, block of the role, kind of site, PET module; [n_candidates]."""
    table = space.table()
    block, _, part = (table["role"].str.partition(".")[i] for i in range(3))
    kind = part.where(part.isin(["", "norm"]), "linear").replace("", "output")
    return table["stack"] + " " + block + " " + kind + " " + table["pet"]


def features(space: Space, has: np.ndarray, solo: pd.DataFrame | None = None) -> pd.DataFrame:
    """Compute all features of structures.

    Args:
        space: the candidates. has: which each structure has, bool [n_structures, n_candidates].
        solo: the utility table of one task, with every candidate once; None: without these features.
    """
    table: Any = space.table()
    columns: dict[str, Any] = {f"has {name}": has[:, i] for i, name in enumerate(space.names)}
    costs, lora = table["n_params"].to_numpy(float), table["pet"].eq("lora")
    columns["n_params"] = has @ costs
    for place, rows in table.groupby(places(space), sort=False).groups.items():
        columns[f"{place} count"] = has[:, rows].sum(1)
        columns[f"{place} n_params"] = has[:, rows] @ costs[rows]
    for (stack, layer), rows in table.groupby(["stack", "layer"], sort=False).groups.items():
        columns[f"{stack} {layer} n_params"] = has[:, rows] @ costs[rows]
        columns[f"{stack} {layer} lora"] = has[:, rows[lora[rows]]].any(1)
    if solo is not None:
        utility = solo["utility"].set_axis(candidate_names(solo)).reindex([*space.names]).fillna(0.0)
        worth = np.where(has, utility.to_numpy(float), 0.0)
        for (stack, layer), rows in table.groupby(["stack", "layer"], sort=False, dropna=False).groups.items():
            columns[f"{stack} {layer} solo sum"] = worth[:, rows].sum(1)
            columns[f"{stack} {layer} solo max"] = worth[:, rows].max(1)
    return pd.concat([lora_layers(space, has), pd.DataFrame(columns)], axis=1).astype(float)


def fit(model: Callable[[], Any], x: np.ndarray, y: np.ndarray) -> Any:
    """A fitted model; without warnings of hyperparameters at the end of their range."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model().fit(x, y)


def estimate(model: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a fitted model, and how uncertain each is relative to the others; [n] both.

    The latter is the standard deviation over the trees of a forest, and the same for all with other models.
    """
    if not hasattr(model, "estimators_"):
        return model.predict(x), np.ones(len(x))
    trees = np.array([tree.predict(x) for tree in model.estimators_])
    return trees.mean(0), trees.std(0)


def held_out(model: Callable[[], Any], x: np.ndarray, y: np.ndarray, family: np.ndarray) -> tuple[np.ndarray, ...]:
    """Estimates of each y by a model that was fitted without its family, and its fold: three vectors [n]."""
    from sklearn.model_selection import GroupKFold

    predicted, spread, fold = np.zeros((3, len(y)))
    for number, (train, test) in enumerate(GroupKFold(min(FOLDS, len(set(family)))).split(x, y, family)):
        predicted[test], spread[test] = estimate(fit(model, x[train], y[train]), x[test])
        fold[test] = number
    return predicted, spread, fold


class Surrogate:
    """A model of the scores of one task.

    Args:
        space, has, solo: as for `features`.
        scores: of each structure, [n_structures]. family: as `families` numbers them.
        model: one of `MODELS`.

    Attributes:
        predicted: held-out prediction of each score, [n_structures].
        limit: largest distance at which a structure counts as one like those of the table.

    Raises:
        StudyError: unknown model, or fewer than two families.
    """

    def __init__(
        self,
        space: Space,
        has: np.ndarray,
        scores: np.ndarray,
        family: np.ndarray,
        *,
        solo: pd.DataFrame | None = None,
        model: str = MODEL,
    ):
        one_of(MODELS).check(StudyError, model=model)
        if len(set(family)) < 2:
            raise StudyError(f"the {len(scores)} structures are one family, so none can be held out; add other ones")
        self.space, self.has, self.scores, self.family, self.solo, self.model = space, has, scores, family, solo, model
        self._floor = FLOOR * float(scores.std()) or 1.0
        x = features(space, has, solo).to_numpy()
        self.predicted, spread, self._fold = held_out(MODELS[model], x, scores, family)
        self._ratios = ((scores - self.predicted) / self._local(spread)) ** 2
        apart = self._apart(has)
        np.fill_diagonal(apart, np.inf)
        self.limit = float(np.quantile(apart.min(1), NEARBY))

    def predict(self, has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores of other structures, bool [n, n_candidates], and their standard errors, [n] both."""
        score, spread = estimate(self._fitted, features(self.space, has, self.solo).to_numpy())
        return score, self._local(spread) * self._ratios.mean() ** 0.5

    def distance(self, has: np.ndarray) -> np.ndarray:
        """Share of the parameters that the most similar structure of the table has at other `places`, [n]."""
        return self._apart(has).min(1)

    def quality(self) -> dict[str, float]:
        """Compute what :meth:`s3pet.studies.bench.Bench.report` says of held-out predictions."""
        from sklearn.linear_model import LinearRegression

        rule = lora_layers(self.space, self.has).iloc[:, :1].to_numpy(float)
        ruled, *_ = held_out(LinearRegression, rule, self.scores, self.family)
        errors = np.array([self._ratios[self._fold != fold].mean() for fold in self._fold])  # from the other folds
        result = {"families": len(set(self.family)), **self._agreement(self.predicted)}
        result["rmse"] = float(((self.scores - self.predicted) ** 2).mean() ** 0.5)
        result["coverage"] = float((self._ratios <= 1.96**2 * errors).mean())
        return result | {f"rule_{name}": value for name, value in self._agreement(ruled).items()}

    @cached_property
    def _fitted(self) -> Any:
        return fit(MODELS[self.model], features(self.space, self.has, self.solo).to_numpy(), self.scores)

    def _local(self, spread: np.ndarray) -> np.ndarray:
        """Standard errors but for a common factor."""
        return np.hypot(spread, self._floor)

    def _apart(self, has: np.ndarray) -> np.ndarray:
        """Share of parameters at other places, of each structure and each one of the table, [n, n_structures]."""
        return cdist(self._shares(has), self._shares(self.has), "cityblock") / 2

    def _shares(self, has: np.ndarray) -> np.ndarray:
        """Share of each structure's parameters at each of the `places`, [n, n_places]."""
        costs = has * self.space.table()["n_params"].to_numpy(float)
        shares = pd.DataFrame(costs.T).groupby(places(self.space).to_numpy()).sum().to_numpy().T
        return shares / np.maximum(shares.sum(1, keepdims=True), 1)

    def _agreement(self, predicted: np.ndarray) -> dict[str, float]:
        """R² and rank correlation with the scores; nan where nothing varies."""
        varied = np.ptp(self.scores) > 0
        r2 = 1 - ((self.scores - predicted) ** 2).mean() / self.scores.var() if varied else np.nan
        rank = stats.spearmanr(self.scores, predicted).statistic if varied and np.ptp(predicted) > 0 else np.nan
        return {"r2": float(r2), "spearman": float(rank)}
