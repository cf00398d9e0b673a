"""Hypergradients against autodiff, in float64, where the second-order part is a large share of the gradient."""

import pytest
import torch
from tiny import tiny_batch, tiny_bert, tiny_t5

from s3pet import attach, bilevel, make_space
from s3pet.gates import sample_gates, shifted_sigmoid


def make_problem(seed=0, n=5, d=6):
    """A smooth two-layer problem whose weights answer strongly to alpha."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y = {k: draw(16, d) for k in ("train", "val")}, {k: draw(16, n) for k in ("train", "val")}
    weights = [0.3 * draw(n, d), 0.3 * draw(n, n)]
    alpha = 0.3 * draw(n)

    def loss(split):
        def closure(alpha, weights):
            hidden = torch.tanh(x[split] @ weights[0].T) * torch.sigmoid(alpha)
            return ((hidden @ weights[1].T - y[split]) ** 2).mean()

        return closure

    return loss("train"), loss("val"), alpha, weights


def directly(train_loss, val_loss, alpha, weights, xi):
    """d/dα of the whole composition by central differences: nothing shared with the code under test."""
    computed = torch.zeros_like(alpha)
    for j in range(len(alpha)):
        values = []
        for sign in (1, -1):
            moved = alpha.clone()
            moved[j] += sign * 1e-5
            leaves = [w.clone().requires_grad_() for w in weights]
            inner = torch.autograd.grad(train_loss(moved, leaves), leaves)
            values.append(val_loss(moved, [w.detach() - xi * g for w, g in zip(leaves, inner, strict=True)]))
        computed[j] = (values[0] - values[1]) / 2e-5
    return computed


@pytest.mark.parametrize("seed", range(3))
def test_both_unrolled_forms_are_the_derivative_of_the_composition(seed):
    xi = 1.0
    train_loss, val_loss, alpha, weights = make_problem(seed)
    expected = directly(train_loss, val_loss, alpha, weights, xi)
    _, exact = bilevel.unrolled_exact(train_loss, val_loss, alpha, weights, xi)
    torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-9)

    _, alpha_gradient, gradients = bilevel.gradients(train_loss, alpha, weights)
    new = [w - xi * g for w, g in zip(weights, gradients, strict=True)]
    _, first = bilevel.first_order(val_loss, alpha, new)
    second_order_share = float((exact - first).norm() / exact.norm())
    assert second_order_share > 0.1, "the problem would not notice a wrong second-order term"

    computed = bilevel.unrolled(train_loss, val_loss, alpha, weights, new, alpha_gradient, xi, epsilon=1e-5)[1]
    torch.testing.assert_close(computed, exact, rtol=1e-3, atol=1e-6)
    coarse = bilevel.unrolled(train_loss, val_loss, alpha, weights, new, alpha_gradient, xi)[1]
    assert float((coarse - exact).norm()) < 0.1 * float((exact - first).norm())


def test_first_order_is_the_partial_derivative_at_the_new_weights():
    _, val_loss, alpha, weights = make_problem()
    value, computed = bilevel.first_order(val_loss, alpha, weights)
    leaf = alpha.clone().requires_grad_()
    (expected,) = torch.autograd.grad(val_loss(leaf, weights), leaf)
    torch.testing.assert_close(computed, expected)
    assert float(value) == float(val_loss(alpha, weights))


def test_unrolled_with_no_gradient_left_is_first_order():
    def flat(alpha, weights):
        return (alpha * 2).sum() + 0 * weights[0].sum()

    weights = [torch.zeros(3, dtype=torch.float64)]
    alpha = torch.ones(4, dtype=torch.float64)
    computed = bilevel.unrolled(flat, flat, alpha, weights, weights, torch.full((4,), 2.0).double(), xi=1.0)[1]
    torch.testing.assert_close(computed, torch.full((4,), 2.0, dtype=torch.float64))


def test_gradients_are_zero_where_the_loss_does_not_depend():
    value, alpha_gradient, (one, two) = bilevel.gradients(
        lambda a, w: (w[0] ** 2).sum(), torch.ones(3), [torch.ones(2), torch.ones(2)]
    )
    assert float(value) == 2
    assert alpha_gradient.tolist() == [0, 0, 0]
    assert one.tolist() == [2, 2]
    assert two.tolist() == [0, 0]


@pytest.mark.parametrize("make_model", [lambda: tiny_t5(gated=True), tiny_bert])
def test_both_unrolled_forms_agree_on_a_real_supernet(make_model):
    """The same through hooks, gates and a transformer, where weights are far from zero (no delta is the identity).

    T5's norms compute in float32 whatever the model's type, so ε cannot be arbitrarily small: 1e-4 is in the middle of
    the range where the one-sided difference is neither truncated nor rounded.
    """
    model, xi = make_model().double(), 1.0
    model.set_attn_implementation("eager")
    space = make_space(model, "mixed")
    batches = {split: tiny_batch(model, rows=8) for split in ("train", "val")}
    batches["val"]["input_ids"] = batches["val"]["input_ids"].flip(0, 1)
    target = torch.randn(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    noise = torch.rand(len(space), generator=generator, dtype=torch.float64)
    alpha = torch.randn(len(space), generator=generator, dtype=torch.float64)
    with attach(model, space) as supernet:
        weights = [0.3 * torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in supernet.weights]

        def loss(split):
            def closure(alpha, weights):
                gates = sample_gates(shifted_sigmoid(alpha, space.costs, 0.3 * space.n_params), noise)
                with supernet.using(gates, weights):
                    return 30 * ((model(**batches[split])[0].mean((1, 2)) - target) ** 2).mean()

            return closure

        train_loss, val_loss = loss("train"), loss("val")
        _, exact = bilevel.unrolled_exact(train_loss, val_loss, alpha, weights, xi)
        _, alpha_gradient, gradients = bilevel.gradients(train_loss, alpha, weights)
        new = [w - xi * g for w, g in zip(weights, gradients, strict=True)]
        _, first = bilevel.first_order(val_loss, alpha, new)
        computed = bilevel.unrolled(train_loss, val_loss, alpha, weights, new, alpha_gradient, xi, epsilon=1e-4)[1]
    assert float((exact - first).norm() / exact.norm()) > 0.1
    assert float((computed - exact).norm() / (exact - first).norm()) < 0.02
