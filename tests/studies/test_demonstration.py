"""What the demonstration says follows from its table."""

import pandas as pd
import pytest

import s3pet
from s3pet.studies import demonstration
from s3pet.studies.bench import Bench
from s3pet.studies.demonstration import BUDGETS, CONTROLS, findings, measured_utility


@pytest.fixture(scope="module")
def result():
    return s3pet.load_run("data/runs/searches/pocket-t5/sentiment/0.05/seed0")


def table(scores):
    """Scores of three runs of each structure: name → budget → list."""
    same = {"task": "sentiment", "kind": "random", "index": 0, "n_params": 640}
    rows = [
        {**same, "structure": f"{name} {budget}", "seed": seed, "score": score, "validation": score}
        for name, values in scores.items() for budget in BUDGETS for seed, score in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_difference_is_said_to_be_one_only_if_its_interval_is_clear_of_zero(result):
    low = {name: [0.70, 0.71, 0.72] for name in CONTROLS}
    text = findings(result, table({"searched": [0.90, 0.91, 0.93], **low}), None)
    assert text.count("which is more than these runs differ by") == 3 and "cannot" not in text
    assert "searched 0.913, covered 0.710, even LoRA 0.710, random 0.710. Searched − covered: +0.203" in text
    low["even LoRA"] = [0.99, 0.80, 0.90]
    text = findings(result, table({"searched": [0.90, 0.91, 0.93], **low}), None)
    assert text.count("so these runs cannot tell them apart") == 3 and "Searched − even LoRA: +0.017" in text
    low["even LoRA"] = [0.99, 1.00, 0.99]
    text = findings(result, table({"searched": [0.90, 0.91, 0.90], **low}), None)
    assert "Searched − even LoRA: -0.090 (95 % from" in text and text.count("which is more") == 3


def test_gates_are_held_against_the_bench_where_it_knows_the_task(result):
    tokenizer = s3pet.load_backbone("pocket-t5").tokenizer
    task = s3pet.load_task("pocket/sentiment", tokenizer)
    utility = measured_utility(task)
    assert utility.task.unique().tolist() == ["sentiment"] and len(utility) == len(Bench.load("pocket").space)
    text = findings(result, table({name: [0.5, 0.6, 0.7] for name in ("searched", *CONTROLS)}), utility)
    assert "rank correlation" in text.splitlines()[0]
    assert measured_utility(task.subsample(20, 10, 10)) is None


def test_every_structure_keeps_its_budget_and_controls_are_new_in_every_run(result, monkeypatch, tmp_path):
    calls = []

    def compare(model, task, structures, **how):
        calls.append((structures, how))
        return pd.DataFrame({"structure": [*structures]})

    monkeypatch.setattr(demonstration.comparison, "compare", compare)
    demonstration.compare_budgets(None, None, result.space, result, tmp_path / "rows.jsonl")
    assert [how["seeds"] for _, how in calls] == [(0,), (1,), (2,)]
    for structures, how in calls:
        assert len(structures) == how["together"] == len(BUDGETS) * (1 + len(CONTROLS))
        for name, structure in structures.items():
            budget = s3pet.Budget.parse(name.split()[-1], total=result.space.backbone_params)
            assert 0 < structure.n_params <= budget.n_params, name
    differ = {name for name in calls[0][0] if len({structures[name].names for structures, _ in calls}) > 1}
    assert differ == {f"{name} {budget}" for name in ("covered", "random") for budget in BUDGETS}
