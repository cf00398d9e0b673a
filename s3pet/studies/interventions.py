"""What single modules do, measured: trained alone, taken out of all, or with random weights.

    solo utility    L(without) − L(with this candidate trained alone)        without: nothing trained but a head
    drop utility    L(all but this candidate) − L(all), after training all together

L is the mean loss on the validation split, in nats per row; the test split is never used. Both give a table with the
candidates of the space as rows (:mod:`s3pet.utility`), which is drawn and compared like a gate table.

Solo utility trains the candidates of one layer together as a :class:`s3pet.studies.population.Population`, so that the
layers below are computed once. A candidate that is inert for the task (:func:`probe_inert`) is not trained.

Source: Wang et al. 2021 (arXiv:2108.04392), for the idea that an operation's strength must be measured, not read off α.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from s3pet.backbones import backbone_checksum, borrows, check_model, preserved
from s3pet.errors import DivergedError, SearchError, SpaceError, check_finite
from s3pet.files.kinds import FLAG, SEED, one_of, optional, several, whole
from s3pet.objectives.streams import derive, in_batches
from s3pet.objectives.texts import make_objective
from s3pet.records import recorded, settings_of
from s3pet.space import Candidate, Space
from s3pet.structure import SPACE
from s3pet.studies.checkpoints import train_in
from s3pet.studies.comparison import discard, kept_rows, row_key
from s3pet.studies.population import Member, Population, blocks_before
from s3pet.supernet import Supernet
from s3pet.tasks import Task
from s3pet.trainer import Recipe
from s3pet.tuning import DEFAULT_LR

INERT_BELOW = 1e-2  # of the median change: above rounding errors, below what any active candidate does
TOGETHER = 24  # candidates in one population
BATCH = 128  # rows that are scored at once
Row = dict[str, Any]


@borrows("a measurement")
def probe_inert(
    model: nn.Module, task: Task, space: Space, *, rows: int = 8, seed: int = 0, objective: Any = None
) -> list[str]:
    """Names of the candidates that change no score of the task, with large random weights on some training rows.

    A score is a log-likelihood relative to those of the other labels of a row, or a value. A candidate may act on a
    model and still be inert for a task: where all label words are one token, self-attention in the decoder has one key
    to read, and its queries and keys do nothing. Inert is what changes scores by less than a hundredth of the median
    over all candidates. Costs a forward pass of ``rows`` rows for each candidate. A candidate that these rows do not
    reach (an expert, say) counts as inert; take more rows. ``space.without(names, "inert for the task")`` leaves them
    out and says so.
    """
    check_model(model)
    SPACE.check(SpaceError, space=space)
    whole(1).check(SearchError, rows=rows)
    with preserved(model):
        learned = make_objective(model, task, objective, seed=seed).eval()
        model.eval()
        batch = learned.collate(learned.encode(task.train[:rows]))
        generator = torch.Generator().manual_seed(derive(seed, 13))
        with torch.no_grad(), Supernet(model, space, seed=seed) as supernet:
            weights = supernet.flatten()
            weights.copy_(torch.randn(weights.shape, generator=generator))
            zeros = torch.zeros(len(space), device=weights.device)
            plain, changes = _scores(learned, batch, supernet, zeros), []
            for gates in torch.eye(len(space), device=weights.device):
                change = _scores(learned, batch, supernet, gates) - plain
                centred = change - change.mean(1, keepdim=True) if change.shape[1] > 1 else change
                changes.append(float(centred.abs().max()))
    least = INERT_BELOW * statistics.median(changes)
    return [name for name, change in zip(space.names, changes, strict=True) if change <= least]


@borrows("a measurement")
def solo_utility(
    model: nn.Module,
    task: Task,
    space: Space,
    *,
    seeds: Sequence[int] = (0,),
    inert: Sequence[str] | None = None,
    objective: Any = None,
    out: str | Path | None = None,
    progress: bool = True,
    **recipe: Any,
) -> pd.DataFrame:
    """Train every candidate alone and measure what it gains on the validation split.

    Args:
        model, task, space: the backbone, left as it was; the task; the candidates.
        seeds: one training each; the error is that of their mean, with one seed that over rows.
        inert: names of candidates that are not trained; None: probe for them.
        objective: as for :func:`s3pet.retrain`.
        out: JSON-lines file of finished trainings, from which a run that was cut off continues.
        progress: show a bar.
        **recipe: fields of :class:`s3pet.trainer.Recipe`; by default 100 steps of 8 rows at 1e-2, warm-up 10.

    Returns:
        A utility table with ``measure`` "solo"; the utility of a candidate whose training diverged is NaN.

    Raises:
        DivergedError: the head alone diverged.
    """
    defaults = {"steps": 100, "batch_size": 8, "lr": 1e-2, "lr_warmup": 10}
    chosen = _checked(model, space, inert, progress, defaults | recipe)
    several(SEED).check(SearchError, seeds=seeds)
    with kept_rows(out) as finished:
        run = _Measurement(model, task, space, inert, objective, chosen)
        with preserved(model):
            before = blocks_before(run.learned, model, space.candidates, run.learned.encode(task.train[:1])[0])
        active = sorted((c for c in space if c.name not in run.idle), key=lambda c: len(before[c.name]))
        chunks: list[list[Candidate]] = [[]]  # the first one trains nothing but a head
        for _, group in groupby(active, key=lambda c: len(before[c.name])):
            layer = list(group)
            chunks += [layer[start : start + TOGETHER] for start in range(0, len(layer), TOGETHER)]
        rows: dict[int, dict[str, Row]] = {seed: {} for seed in seeds}
        with tqdm(total=len(seeds) * (len(active) + 1), desc=f"solo on {task.name}", disable=not progress) as bar:
            for seed, chunk in product(seeds, chunks):
                keys = {name: run.key(structure=["solo", name, seed]) for name in [c.name for c in chunk] or [""]}
                place = finished.place([*keys.values()])
                if not {*keys.values()} <= finished.keys():
                    for key, row in zip(keys.values(), run.train_alone(chunk, seed, place), strict=True):
                        if key not in finished:  # an earlier run may have been cut off between two rows
                            finished.add(key, row)
                    discard(place)
                rows[seed] |= {name: finished[key] for name, key in keys.items()}
                bar.update(len(keys))
    return run.table(_solo_rows(space, rows), "solo", len(seeds))


@borrows("a measurement")
def drop_utility(
    model: nn.Module,
    task: Task,
    space: Space,
    *,
    seed: int = 0,
    inert: Sequence[str] | None = None,
    objective: Any = None,
    out: str | Path | None = None,
    progress: bool = True,
    **recipe: Any,
) -> pd.DataFrame:
    """Train all candidates together, then take out each in turn and measure what that loses on the validation split.

    Arguments and table are as for :func:`solo_utility`; ``measure`` is "drop", and the error is that over rows. The
    recipe's defaults are 300 steps of 16 rows at 3e-3.
    """
    defaults = {"steps": 300, "batch_size": 16, "lr": 3e-3, "lr_warmup": 30}
    chosen = _checked(model, space, inert, progress, defaults | recipe)
    SEED.check(SearchError, seed=seed)
    with kept_rows(out) as finished:
        run = _Measurement(model, task, space, inert, objective, chosen)
        names = ["", *(name for name in space.names if name not in run.idle)]
        keys = {name: run.key(structure=["drop", [*space.names], name, seed]) for name in names}
        place, waiting = finished.place([*keys.values()]), [name for name in names if keys[name] not in finished]
        how: dict[str, Any] = {"initial": len(names) - len(waiting), "desc": f"drop on {task.name}"}
        with tqdm(total=len(names), disable=not progress, **how) as bar:

            def keep(row: Row) -> None:
                finished.add(keys[row["candidate"]], row)
                bar.update()

            if waiting:
                run.take_out(waiting, *run.train_all(seed, place), keep)
        discard(place)
    rows, all_on = [], finished[keys[""]]
    for name in space.names:
        own = finished[keys.get(name, keys[""])]
        gain = torch.tensor(own["losses"]) - torch.tensor(all_on["losses"])
        error = float(gain.std() / math.sqrt(len(gain)))
        gained = all_on["score"] - own["score"]
        rows.append({"utility": float(gain.mean()), "utility_error": error, "score_gain": gained})
    return run.table(rows, "drop", 1)


def _checked(model: nn.Module, space: Space, inert: Any, progress: Any, recipe: dict[str, Any]) -> Recipe:
    """The recipe; arguments that solo and drop utility cannot use are refused, before any work."""
    chosen = settings_of(Recipe, recipe, "a utility", {"seed": "seeds"})
    check_model(model)
    SPACE.check(SpaceError, space=space)
    optional(several(one_of(space.names), 0)).check(SpaceError, inert=inert)
    FLAG.check(SearchError, progress=progress)
    space.check(model)
    return replace(chosen, evaluations=1)  # what counts is the end of the training: no choice, so no bias by choosing


class _Measurement:
    """What the trainings of a measurement share; ``idle`` are the candidates that are not trained."""

    def __init__(self, model: nn.Module, task: Task, space: Space, inert: Any, objective: Any, recipe: Recipe):
        self.model, self.task, self.space, self.objective, self.recipe = model, task, space, objective, recipe
        self.idle = set(probe_inert(model, task, space, objective=objective) if inert is None else inert)
        self.learned: Any = make_objective(model, task, objective)
        how = {"recipe": recorded(recipe), "objective": recorded(self.learned.settings)}
        self.key = partial(row_key, backbone=backbone_checksum(model), task=task.fingerprint, **how)

    def population(self, structures: Sequence[tuple[Candidate, ...]], seed: int) -> Population:
        """Structures to be trained with the recipe."""
        members = [Member(candidates, self.recipe.lr or DEFAULT_LR["pet"], seed) for candidates in structures]
        return Population(self.model, self.task, members, self.recipe, self.objective)

    def train_alone(self, chunk: Sequence[Candidate], seed: int, folder: Path | None) -> list[Row]:
        """Losses of all validation rows and the score, after training each candidate alone (none: the head)."""
        with self.population([(c,) for c in chunk] or [()], seed) as population:
            if len(population.theta):
                train_in(folder, population, score=False)
            losses, scores = population.evaluate(self.task.validation, population.validation_rows)
            finite = population.finite.cpu() & losses.sum(1).isfinite().cpu() & torch.tensor(scores).isfinite()
        names, rows = [c.name for c in chunk] or [""], []
        for name, own, score, fine in zip(names, losses, scores, finite.tolist(), strict=True):
            result = {"losses": [round(v, 6) for v in own.tolist()], "score": score} if fine else {"diverged": True}
            rows.append({"candidate": name, "seed": seed, **result})
        return rows

    def train_all(self, seed: int, folder: Path | None) -> tuple[dict[str, Tensor], Any]:
        """The tensors of all candidates trained together, and the objective with its trained head."""
        with self.population([self.space.candidates], seed) as population:
            train_in(folder, population, score=False)
            if not population.finite[0]:
                how = f"lower lr (now {population.members[0].lr:g}) or raise lr_warmup"
                raise DivergedError(f"all candidates trained together diverged; {how}")
            tensors = population.tensors(0, best=False)
        if population.objective.head is not None:
            head = {n.removeprefix("head/"): t for n, t in tensors.items() if n.startswith("head/")}
            population.objective.head.load_state_dict(head)
        return tensors, population.objective

    def take_out(
        self, names: Sequence[str], tensors: dict[str, Tensor], learned: Any, keep: Callable[[Row], None]
    ) -> None:
        """For each name, ``keep`` losses of all validation rows and the score without this candidate ("": with all)."""
        encoded = learned.encode(self.task.validation)
        numbers = in_batches(encoded, BATCH)
        order = torch.tensor([number for part in numbers for number in part]).argsort()
        labels = [example.label for example in self.task.validation]
        with preserved(self.model), torch.no_grad(), Supernet(self.model, self.space, seed=0) as supernet:
            supernet.load(tensors)
            self.model.eval()
            learned.eval()
            batches = [learned.collate([encoded[number] for number in part]) for part in numbers]
            for name in names:
                gates = torch.tensor([float(own != name) for own in self.space.names], device=learned.device)
                scores = [_scores(learned, batch, supernet, gates) for batch in batches]
                losses = torch.cat([learned.losses(s, b["target"]) for s, b in zip(scores, batches, strict=True)])
                check_finite(f"the loss without {name} is", losses.sum())
                score = self.task.score(learned.decide(torch.cat(scores)[order]), labels)[self.task.metric]
                keep({"candidate": name, "losses": losses[order].tolist(), "score": score})

    def table(self, rows: list[Row], measure: str, seeds: int) -> pd.DataFrame:
        """The utility table of these rows, one for each candidate."""
        columns = ["site", "path", "stack", "layer", "role", "pet", "rank", "n_params"]
        table = self.space.table()[columns].reset_index(drop=True)
        measured = pd.DataFrame(rows, columns=["utility", "utility_error", "score_gain", "score_gain_error"])
        inert = [name in self.idle for name in self.space.names]
        about: dict[str, Any] = {"task": self.task.name, "measure": measure, "steps": self.recipe.steps, "seeds": seeds}
        return pd.concat([table, measured.astype(float)], axis=1).assign(inert=inert, **about)


def _scores(learned: Any, batch: dict[str, Tensor], supernet: Supernet, gates: Tensor) -> Tensor:
    supernet.use(gates)
    return learned.scores(batch).float()


def _solo_rows(space: Space, rows: dict[int, dict[str, Row]]) -> list[Row]:
    """Of every candidate: what it gained over nothing but a head, on average over the seeds."""
    summary, failed = [], {"losses": [math.nan], "score": math.nan}
    if any(own[""].get("diverged") for own in rows.values()):
        raise DivergedError("the head diverged where nothing else was trained; lower lr or raise lr_warmup")
    for c in space:
        gains, scores, per_row = [], [], torch.zeros(1)
        for own in rows.values():
            with_it = own.get(c.name, own[""])
            with_it = failed if with_it.get("diverged") else with_it
            per_row = torch.tensor(own[""]["losses"]) - torch.tensor(with_it["losses"])
            gains.append(float(per_row.mean()))
            scores.append(with_it["score"] - own[""]["score"])
        n = len(gains)
        over_rows = float(per_row.std() / math.sqrt(len(per_row)))
        gain, score = torch.tensor(gains, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)
        summary.append(
            {
                "utility": float(gain.mean()),
                "utility_error": over_rows if n == 1 else float(gain.std()) / math.sqrt(n),
                "score_gain": float(score.mean()),
                "score_gain_error": math.nan if n == 1 else float(score.std()) / math.sqrt(n),
            }
        )
    return summary
