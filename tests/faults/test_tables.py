"""Tables with a value that cannot be: each is drawn, or refused by name; never an error from below, never a hang."""

import io
import signal
import warnings

import fault_calls
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gate_tables import make_utility

import s3pet
from s3pet import plots
from s3pet.errors import PlotError, RunError, S3PetError, StudyError
from s3pet.files.columns import ANY, checked_columns
from s3pet.studies import statistics
from s3pet.studies.selectors import useful_structure
from s3pet.transfer import gate_difference
from s3pet.utility import disagreement, faithfulness

WRONG = [float("inf"), 1e308, "x", [1], None]
LIMIT = 20  # seconds of the processor for one call


@pytest.fixture(scope="module")
def g(tmp_path_factory):
    return fault_calls.good_objects(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def readers(g):
    """Name → function and a table that it takes."""
    both, gates = {"results": {"a": g.result, "b": g.second}, "draws": 5}, g.result.gates
    return {
        **{f.__name__: (f, gates) for f in (s3pet.describe, plots.polarisation, plots.plot_budget_bar)},
        **{f.__name__: (f, gates) for f in (plots.plot_profile, plots.make_grid, plots.gate_cells)},
        "candidate_facts": (lambda table: plots.candidate_facts(table, g.names[0]), gates),
        "choice_table": (lambda table: plots.choice_table({"a": table}), gates),
        "gate_difference": (lambda table: gate_difference(gates, table), gates),
        "plot_difference": (lambda table: plots.plot_difference(table, gates), gates),
        "disagreement": (lambda table: disagreement(table, g.utility), gates),
        "faithfulness": (lambda table: faithfulness(gates, table), g.utility),
        "useful_structure": (lambda table: useful_structure(g.space, table, 600), g.utility),
        "plot_overlap": (lambda table: plots.plot_overlap(table, by="group"), g.pairs),
        **{f.__name__: (f, g.scores) for f in (plots.plot_comparison, plots.plot_budget_curve, plots.plot_repeats)},
        **{f.__name__: (f, g.scores) for f in (plots.summarize_scores, statistics.summary)},
        "plot_differences": (plots.plot_differences, g.summary),
        "plot_ranking": (plots.plot_ranking, g.over),
        "plot_transfer": (plots.plot_transfer, g.carried),
        "plot_frequency": (plots.plot_frequency, plots.choice_frequency(**both)),
        "plot_shares": (plots.plot_shares, plots.choice_shares(**both)),
    }


def outcome(function, table):
    """ "drawn", "refused", or what went wrong."""

    def too_long(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(table)
        return "drawn"
    except S3PetError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        plt.close("all")


def test_a_wrong_value_in_any_column_is_refused_by_name(readers):
    wrong, n_refused = [], 0
    for name, (function, table) in readers.items():
        assert outcome(function, table) == "drawn", (name, function(table))
        for column in table:
            for value in WRONG:
                values = table[column].astype(object).tolist()
                values[len(values) // 2] = value
                result = outcome(function, table.assign(**{column: pd.Series(values, table.index, dtype=object)}))
                wrong += [] if result in ("drawn", "refused") else [f"{name}: {column}={value}: {result[:150]}"]
                n_refused += result == "refused"
    assert not wrong, "\n".join(wrong)
    assert n_refused > 400


def test_tables_of_other_types_say_the_same(g, readers):
    """As they come from a CSV file, with nullable types, with categories, in another order."""
    csv = pd.read_csv(io.StringIO(g.second.gates.to_csv(index=False)))
    whole, text = g.second.gates, ["site", "stack", "role", "pet"]
    same = gate_difference(g.result, whole)["difference"]
    others = [csv, whole.convert_dtypes(), whole.astype(dict.fromkeys(text, "category")), whole.astype(object)]
    for other in others:
        assert np.allclose(gate_difference(g.result, other)["difference"], same)
        assert s3pet.describe(other) == s3pet.describe(whole)
        assert faithfulness(other, make_utility(whole)).equals(faithfulness(whole, make_utility(whole)))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("layer", [0.0, 1.5], r"'layer' holds .*1\.5.*; expected a whole number from 0, or None"),
        ("layer", [0, "x"], "'layer' holds 'x'"),
        ("n_params", [5, -1], "'n_params' holds .*-1"),
        ("prob", [0.5, np.inf], "'prob' holds .*inf.*; expected a finite number"),
        ("site", ["a", None], "'site' holds nan; expected a text"),
        ("chosen", [True, "False"], "'chosen' holds 'False'; expected true or false"),
        ("score", ["0.5", 0.5], "'score' holds '0.5'; expected a number"),
        ("mine", [0.5, "high"], "'mine' holds 'high'"),
    ],
)
def test_what_is_wrong_is_said(column, values, said):
    with pytest.raises(PlotError, match=said):
        checked_columns(pd.DataFrame({column: values}), PlotError, [column], {"mine": ANY})


def test_what_may_be_missing_and_what_changes():
    table = pd.DataFrame({"layer": [0, None], "prob": [0.5, np.nan], "score": [np.inf, 1], "other": [[1], {}]})
    assert checked_columns(table, PlotError, table) is table
    numbers = checked_columns(table.astype(object), PlotError, table)
    checked_columns(table.assign(score="high"), PlotError)  # nobody asked for it
    assert numbers[["layer", "prob", "score"]].dtypes.eq(float).all() and table["layer"].equals(numbers["layer"])
    with pytest.raises(StudyError, match="has 2 columns 'prob'; keep one"):
        checked_columns(table.set_axis(["layer", "prob", "prob", "x"], axis=1), StudyError)


def test_candidates_at_other_places_are_no_same_space(g):
    with pytest.raises(RunError, match=r"different spaces: .* candidates are in one only"):
        gate_difference(g.result, g.second.gates.assign(role="attn.q"))
