"""Gates: the shift against an independent root finder, the gradient modes against autodiff and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from s3pet import Budget
from s3pet.errors import BudgetError
from s3pet.gates import (
    expected_gates,
    sample_gates,
    sampling_gap,
    shifted_sigmoid,
    solve_shift,
)


def make_problem(n=40, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    alpha = spread * torch.randn(n, generator=generator, dtype=torch.float64)
    costs = torch.randint(1, 50, (n,), generator=generator).double() * 16
    return alpha, costs, float(0.1 * costs.sum())


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_shift_is_the_root_another_solver_finds(spread, temperature):
    alpha, costs, budget = make_problem(spread=spread)

    def excess(shift):
        return float((costs / (1 + torch.exp(-(alpha - shift) / temperature))).sum()) - budget

    expected = brentq(excess, -200, 200, xtol=1e-13)
    computed = solve_shift(alpha, costs, budget, temperature=temperature)
    assert abs(float(computed) - expected) < 1e-8
    assert abs(excess(float(computed))) < 1e-6 * budget


def test_shift_holds_float32_alphas_to_the_budget():
    alpha, costs, budget = make_problem(900, spread=4.0)
    probs = torch.sigmoid(alpha.float().double() - solve_shift(alpha.float(), costs.float(), budget))
    assert float((costs * probs).sum()) == pytest.approx(budget, rel=1e-6)


def test_shift_is_batched():
    alpha, costs, budget = make_problem()
    many = torch.stack([alpha, alpha + 2, -alpha])
    each = torch.stack([solve_shift(row, costs, budget) for row in many])
    torch.testing.assert_close(solve_shift(many, costs, budget), each, rtol=0, atol=1e-12)


def test_uniform_alpha_gives_the_budget_share():
    _, costs, budget = make_problem()
    probs = shifted_sigmoid(torch.full((40,), 3.0, dtype=torch.float64), costs, budget)
    torch.testing.assert_close(probs, torch.full((40,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("budget", [0, -3, 1e12])
def test_budget_outside_the_space_is_refused(budget):
    alpha, costs, _ = make_problem()
    with pytest.raises(BudgetError, match="not between 0 and the"):
        solve_shift(alpha, costs, budget)


def test_alpha_that_is_not_finite_is_refused():
    alpha, costs, budget = make_problem()
    alpha[3] = float("nan")
    with pytest.raises(BudgetError, match="not finite"):
        solve_shift(alpha, costs, budget)


def finite_difference(function, alpha, eps=1e-6):
    columns = []
    for j in range(len(alpha)):
        up, down = alpha.clone(), alpha.clone()
        up[j] += eps
        down[j] -= eps
        columns.append((function(up) - function(down)) / (2 * eps))
    return torch.stack(columns, 1)


def test_implicit_gradient_is_the_derivative_of_the_whole_map():
    alpha, costs, budget = make_problem(12)

    def probs(a):
        return shifted_sigmoid(a, costs, budget, temperature=0.7, gradient="implicit")

    jacobian = torch.autograd.functional.jacobian(probs, alpha)
    torch.testing.assert_close(jacobian, finite_difference(probs, alpha), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(costs @ jacobian, torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-9)


def test_detached_gradient_is_the_sigmoid_s_own():
    alpha, costs, budget = make_problem(12)
    jacobian = torch.autograd.functional.jacobian(
        lambda a: shifted_sigmoid(a, costs, budget, temperature=0.7, gradient="detached"), alpha
    )
    p = shifted_sigmoid(alpha, costs, budget, temperature=0.7)
    torch.testing.assert_close(jacobian, torch.diag(p * (1 - p) / 0.7))


def test_normalized_gradient_is_the_authors_closed_form():
    alpha, costs, budget = make_problem(12)
    jacobian = torch.autograd.functional.jacobian(
        lambda a: shifted_sigmoid(a, costs, budget, temperature=0.7, gradient="normalized"), alpha
    )
    p = shifted_sigmoid(alpha, costs, budget, temperature=0.7)
    slope = p * (1 - p) / 0.7
    torch.testing.assert_close(jacobian, torch.diag(slope) - torch.outer(p, slope) / p.sum())
    torch.testing.assert_close(jacobian.sum(0), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-12)


def test_three_modes_agree_in_value():
    alpha, costs, budget = make_problem()
    values = [shifted_sigmoid(alpha, costs, budget, gradient=g) for g in ("normalized", "detached", "implicit")]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])
    with pytest.raises(ValueError, match="not one of"):
        shifted_sigmoid(alpha, costs, budget, gradient="exact")


def test_samples_are_the_binary_concrete():
    p, u, tau = 0.3, 0.8, 0.5
    logit = (math.log(u / (1 - u)) + math.log(p / (1 - p))) / tau
    computed = sample_gates(torch.tensor([p]), torch.tensor([u]), temperature=tau)
    assert float(computed) == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_a_gate_is_above_a_half_as_often_as_its_probability_says(tau):
    noise = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    gates = sample_gates(torch.tensor(0.0136, dtype=torch.float64), noise, temperature=tau)
    assert float((gates > 0.5).double().mean()) == pytest.approx(0.0136, abs=2e-5)


def test_hard_samples_are_zero_or_one_with_the_relaxed_gradient():
    probs = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([0.5, 0.6], dtype=torch.float64)
    hard = sample_gates(probs, noise, hard=True)
    soft = sample_gates(probs, noise)
    assert hard.tolist() == [0.0, 1.0]
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((hard * weights).sum(), probs)[0], torch.autograd.grad((soft * weights).sum(), probs)[0]
    )


@pytest.mark.parametrize("p", [0.0136, 0.0545, 0.116])
def test_mean_of_the_sampled_gate_is_the_closed_form(p):
    o = p / (1 - p)
    expected = o * (o - 1 - math.log(o)) / (o - 1) ** 2
    computed = float(expected_gates(torch.tensor([p], dtype=torch.float64)))
    assert computed == pytest.approx(expected, rel=1e-3)


def test_sampling_gap_is_what_the_reference_measured():
    costs = torch.ones(10, dtype=torch.float64)
    for p, gap in ((0.0136, 3.4), (0.0545, 2.3), (0.116, 1.7)):
        probs = torch.full((10,), p, dtype=torch.float64)
        assert sampling_gap(probs, costs) == pytest.approx(gap, abs=0.06)
        assert sampling_gap(probs, costs, hard=True) == 1.0
        assert sampling_gap(probs, costs, temperature=0.1) < 1.1


def test_sampling_gap_agrees_with_simulation():
    alpha, costs, budget = make_problem()
    probs = shifted_sigmoid(alpha, costs, budget)
    noise = torch.from_numpy(np.random.default_rng(0).uniform(size=(20_000, 40)))
    simulated = float((sample_gates(probs, noise) * costs).sum(1).mean() / budget)
    assert sampling_gap(probs, costs) == pytest.approx(simulated, rel=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (2048, 2048),
        ("2048", 2048),
        ("2,048", 2048),
        (2048.0, 2048),
        (0.0001, 2048),
        ("1e-4", 2048),
        ("0.01%", 2048),
        ("0.01 %", 2048),
        ("1‱", 2048),
        ("0.1‰", 2048),
        ("1.39‱", 2846),
        ("1.39e-4", 2846),
        (1, 1),
    ],
)
def test_budget_reads_all_its_forms(text, expected):
    budget = Budget.parse(text, total=20_480_000)
    assert budget.n_params == expected
    assert Budget.parse(budget, total=20_480_000) == budget


def test_budget_shows_all_three_forms():
    assert str(Budget.parse("0.01%", total=20_480_000)) == "2,048 parameters = 0.01 % = 1 ‱ of 20,480,000"


@pytest.mark.parametrize(
    "text", ["0,1%", "0,5", "1,39‱", "0,100", "1,39e-4", "12,34", "2,048.5", "1,5,", ",048", "1,000%"]
)
def test_a_comma_is_only_a_thousands_separator_of_whole_numbers(text):
    with pytest.raises(BudgetError, match=f"budget {text!r} is not a number.*Give parameters"):
        Budget.parse(text, total=20_480_000)
    assert Budget.parse("12,345,678", total=20_480_000).n_params == 12_345_678


@pytest.mark.parametrize(
    "text",
    [0, -5, "abc", "", "0%", float("nan"), float("inf"), "1e99", 1.5, 1.0, True, None, [1], "1e-12", "5 %%"]
    + ["9" * 310, "9" * 5000, "9" * 310 + "%", 10**310],
)
def test_unreadable_budgets_say_how_to_write_one(text):
    with pytest.raises(BudgetError, match="Give parameters"):
        Budget.parse(text, total=20_480_000)
    with pytest.raises(ValueError):  # noqa: PT011 - the builtin that users catch
        Budget.parse(text, total=20_480_000)
