"""Faithfulness: do gates rank the candidates as their measured utility does?

A utility table has a row per candidate: its columns in the gate table, ``utility`` with ``utility_error`` (gain in
held-out loss and its standard error, nats), ``score_gain`` with ``score_gain_error`` (the same for the main metric),
``inert`` (no score of the task changes, whatever the weights), and constant columns: ``measure`` ("solo": trained
alone; "drop": taken out of all), ``task``, ``steps``, ``seeds``.

Correlations are Spearman's, with average ranks for ties, so that candidates of exactly 0 utility share a rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr  # type: ignore[import-untyped]

from s3pet.errors import StudyError
from s3pet.files.columns import ANY, checked_columns
from s3pet.files.kinds import TEXT, instance

COLUMNS = ["site", "stack", "layer", "role", "pet", "rank", "inert", "measure", "task"]
MEASURES = ("spearman", "low", "high", "ceiling", "spearman_chance", "spearman_chance_high")


def candidate_names(table: pd.DataFrame) -> pd.Series:
    """``site:pet:rank`` of every row, as :attr:`s3pet.space.Candidate.name`."""
    rank = table["rank"].astype("Int64").astype("string").radd(":").fillna("")
    return (table["site"] + ":" + table["pet"] + rank).astype(object)


def check_utility(utility: pd.DataFrame, value: str = "utility") -> pd.DataFrame:
    """A utility table with the candidates' names as its index; a ``value`` of NaN means not measured.

    An unknown error of an inert candidate is 0. Raises StudyError, which says all that is wrong with the table.
    """
    if not isinstance(utility, pd.DataFrame):
        raise StudyError(f"expected a utility table (DataFrame, one row per candidate), got {type(utility).__name__}")
    error, problems = f"{value}_error", []
    TEXT.check(StudyError, value=value)
    utility = checked_columns(utility, StudyError, COLUMNS, dict.fromkeys((value, error), ANY))
    if missing := [name for name in (*COLUMNS, value, error) if name not in utility]:
        problems.append(f"no column {', '.join(missing)}; it has {', '.join(map(str, utility))}")
    for name in ("measure", "task"):
        if name in utility and utility[name].nunique() > 1:
            last = utility[name].iloc[-1]
            problems.append(f"several values of {name!r}; pick one: table[table[{name!r}] == {last!r}]")
    for name in {value, error} & {*utility}:
        if np.isinf(utility[name].astype(float)).any():
            problems.append(f"{name!r} has values that are not finite")
        elif name == error and (utility[error] < 0).any():
            problems.append(f"{error!r} has values below 0")
    if not missing and len(doubles := (names := candidate_names(utility))[names.duplicated()].unique()):
        problems.append(f"{len(doubles)} candidates have several rows, such as {doubles[0]}")
    elif not missing and not utility[value].notna().any():
        problems.append("no candidate has a value")
    if problems:
        raise StudyError(f"not a utility table ({len(utility)} rows): {'; '.join(problems)}")
    table = utility.set_axis(names.rename("candidate")).astype({value: float, error: float})
    table["inert"] = table["inert"].fillna(False).astype(bool)
    return table.assign(**{error: table[error].mask(table["inert"] & table[error].isna(), 0.0)})


def disagreement(gates: Any, utility: pd.DataFrame, *, value: str = "utility") -> pd.DataFrame:
    """Gates beside utility, candidate by candidate, the most over-valued first and the most under-valued last.

    Args:
        gates: a search result, or a gate table (its ``prob``).
        utility, value: a utility table, and its column: "utility" or "score_gain".

    Returns:
        The gate table of the candidates that are in both, with ``value``, its error, ``inert`` (for the task),
        ``prob_rank`` and ``utility_rank`` (0: the lowest, 1: the highest, ties share the mean) and ``difference``,
        prob_rank − utility_rank; the index holds the candidates' names. ``.attrs`` names the others: ``only_gates``
        and ``only_utility``. Raises StudyError for bad tables, or if no candidate is in both.
    """
    table, measured = getattr(gates, "gates", gates), check_utility(utility, value).dropna(subset=[value])
    instance(pd.DataFrame, "a search result or a gate table").check(StudyError, gates=table)
    if missing := [name for name in ("site", "stack", "layer", "pet", "rank", "prob") if name not in table]:
        raise StudyError(f"a gate table has no column {', '.join(missing)}; it has {', '.join(map(str, table))}")
    table = checked_columns(table, StudyError)
    gated = table.set_axis(candidate_names(table).rename("candidate"))
    both = gated.index.intersection(measured.index, sort=False)
    if gated.index.has_duplicates or not len(both):
        problem = "no candidate has a gate and a utility" if not len(both) else "a candidate has several gates"
        first = [*gated.index[:1], *measured.index[:1]]
        raise StudyError(f"{problem}: {len(gated)} gates, {len(measured)} utilities; the first are {', '.join(first)}")
    table = gated.loc[both].assign(**measured.loc[both, [value, f"{value}_error", "inert"]])
    table = table.assign(prob_rank=unit_ranks(table["prob"]), utility_rank=unit_ranks(table[value]))
    table = table.assign(difference=table["prob_rank"] - table["utility_rank"])
    table = table.sort_values("difference", ascending=False, kind="stable")
    alone = {"only_gates": gated.index.difference(both), "only_utility": measured.index.difference(both)}
    table.attrs = {name: names.tolist() for name, names in alone.items()}
    return table


def unit_ranks(values: pd.Series) -> pd.Series:
    """Ranks from 0 (the lowest) to 1 (the highest); ties share the mean, a single value has 0.5."""
    return (values.rank() - 1) / (len(values) - 1) if len(values) > 1 else values.rank() / 2


def faithfulness(gates: Any, utility: pd.DataFrame, *, value: str = "utility") -> pd.DataFrame:
    """Rank correlation of gates with measured utility, beside its ceiling and chance.

    The **ceiling** is the rank correlation to expect between the true utility and the measured one: gates that knew the
    truth would reach it. Let c be the expected rank correlation of the measured utility with a repetition, which adds
    the error once more: c = Σ r_i·E[r'_i] / √(Σ r_i² · Σ r'_i²) with centred ranks r and E[r'_i] = Σ_j Φ((u_i −
    u_j)/√(s_i² + s_j²)) − n/2, which is exact. If the error has the share x of the variance of what was measured, a
    repetition correlates with it by 1/√(1 + x), and the truth by √(1 − x) = √(2 − 1/c²), at least 0 (c is converted to
    Pearson's correlation of normal variables, 2 sin(πc/6), and the result back). Because this is done with ranks, a few
    large utilities do not hide that the order of the many small ones is noise. In simulations it is right to 0.02 for
    normal utilities with an error of up to their spread, and up to 0.12 too high if most true utilities are equal. An
    error that all candidates share (of the reference loss) does not change ranks: it makes the ceiling too low. An
    error over rows leaves out what another seed would change: then it is too high.

    Args:
        gates, utility, value: as in :func:`disagreement`.

    Returns:
        One row per ``scope``: "all"; each PET module, such as "lora"; "within PET modules", ranked within each and
        pooled; "between layers", of the means of each stack and layer; "within layers", pooled. ``n`` candidates (or
        layers) in groups of two or more; ``spearman`` with its 95 % interval ``low, high`` as if candidates were
        independent; ``ceiling``, NaN if an error is unknown; ``spearman_chance`` (0) and ``spearman_chance_high``, the
        95 % quantile of shuffled gates, as :func:`s3pet.transfer.agreement` has them. NaN for fewer than three
        candidates, or if all are equal. ``.attrs`` is that of :func:`disagreement`, which also raises the errors.

    Source:
        Interval: Bonett and Wright 2000. Attenuation by error: Spearman 1904.
    """
    table, error = disagreement(gates, utility, value=value), f"{value}_error"
    inside = table[table["layer"].notna()]
    groups = inside.groupby(["stack", "layer"], observed=True, sort=False)
    layers = groups[["prob", value]].mean()
    layers[error] = groups[error].agg(lambda errors: np.sqrt((errors**2).sum(skipna=False)) / len(errors))
    scopes: dict[str, tuple[pd.DataFrame, Any]] = {"all": (table, 0)}
    scopes |= {str(pet): (part, 0) for pet, part in table.groupby("pet", observed=True)}
    scopes["within PET modules"] = table, table["pet"]
    scopes |= {"between layers": (layers, 0), "within layers": (inside, groups.ngroup())}
    rows = []
    for scope, (part, kinds) in scopes.items():
        kinds = pd.Series(kinds, part.index).to_numpy()
        prob, measured, errors = part[["prob", value, error]].to_numpy(float).T
        rows.append((scope, *_compare(prob, measured, errors, kinds)))
    measures = pd.DataFrame(rows, columns=["scope", "n", *MEASURES])
    measures.attrs = table.attrs
    return measures


def _compare(prob: np.ndarray, utility: np.ndarray, error: np.ndarray, groups: np.ndarray) -> tuple[float, ...]:
    """``n`` and MEASURES of rank correlations within groups, pooled; all arguments [n]."""
    same = groups[:, None] == groups[None, :]
    sizes = same.sum(1)
    n, n_groups = int((sizes > 1).sum()), (1 / sizes[sizes > 1]).sum()
    freedom = n - n_groups + 1  # n of a single group with as many degrees of freedom
    exact = np.zeros_like(error)
    x, y = (_centred_ranks(values, exact, same) for values in (prob, utility))
    if n < 3 or not x.any() or not y.any():
        return (n, *[np.nan] * len(MEASURES))
    norm = np.sqrt((x @ x) * (y @ y))
    rho = float(x @ y / norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = 1.96 * np.sqrt((1 + rho**2 / 2) / (freedom - 3)) if freedom > 3 else np.nan
        low, high = np.tanh(np.arctanh(np.clip(rho, -1, 1)) + np.array([-half, half]))
    shuffled = (same @ x**2) * (same @ y**2) / np.maximum(sizes - 1, 1) / sizes  # variance of x @ y, within groups
    sure = np.where(error == 0, utility, np.nan)
    ties = (same & (sure[:, None] == sure)).sum(1).clip(1)
    repeated = ((1 - (ties / sizes) ** 2) / 12).sum()  # Σ r'²: in a repetition, only values without error tie
    c = float(y @ _centred_ranks(utility, error, same) / np.sqrt((y @ y) * repeated))
    normal = max(2 * np.sin(np.pi * c / 6), 0.5)
    ceiling = 6 / np.pi * np.arcsin(np.sqrt(max(2 - 1 / normal**2, 0.0)) / 2) if np.isfinite(c) else np.nan
    return n, rho, float(low), float(high), float(ceiling), 0.0, float(1.645 * np.sqrt(shuffled.sum()) / norm)


def _centred_ranks(values: np.ndarray, error: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Expected rank of each value + normal error within its group, minus the mean rank, over the group's size; [n]."""
    gap, noise = values[:, None] - values, np.hypot(error[:, None], error)
    above = np.where(noise == 0, 0.5 + np.sign(gap) / 2, ndtr(gap / np.where(noise == 0, 1, noise)))
    return ((above - 0.5) * same).sum(1) / same.sum(1)
