"""How a search runs: each field a keyword of :func:`s3pet.search` and an option of the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from s3pet.bilevel import ALPHA_OPTIMIZERS, ORDERS
from s3pet.errors import SearchError
from s3pet.gates import GRADIENT_MODES

SAMPLINGS = ("concrete", "hard", "mean")
SCHEDULES = ("linear", "constant", "inverse_sqrt")
ALPHA_SPLITS = ("val", "both")
STOPS = (None, "settled")
SHRINKING = 0.6  # share of the steps after the warm-up in which start_budget comes down to the budget, as AdaLoRA's do


@dataclass(frozen=True)
class Settings:
    """How a search runs; every field is a keyword of :func:`search`.

    Attributes:
        steps: steps, each one weight and one α update.
        order: ``"first"``, ``"unrolled"`` or ``"unrolled_exact"``.
        seed: of everything random.
        batch_size: examples per batch, in both halves.
        lr: learning rate of PET weights and head (AdamW, no decay).
        vector_lr: that of BitFit and LNFit, as a multiple of ``lr``. For inputs of size 1 a first step of AdamW moves
            the output of a LoRA by about 16/√3 · lr (its scale, and the spread of A), that of a bias by lr: at one
            rate for all, biases and norms have hardly moved when α decides about them. 10 makes them equal.
        alpha_lr: learning rate of α.
        alpha_optimizer: ``"adamw"`` (without decay, as the authors), or ``"shared"``: one step size for all candidates,
            see :class:`s3pet.bilevel.SharedAdam`.
        alpha_split: where α's gradient is taken: ``"val"``, on search_val, as in the method; ``"both"`` averages
            it with the gradient on search_train that the weight pass gives anyway: half of it is then no longer
            bi-level, for twice the rows.
        warmup: of the ``steps``, how many first train the weights alone, at uniform gates. A fresh head has much to
            learn that no candidate is needed for, and those next to it help it most: without a warm-up α favours them.
        start_budget: the expected cost at the start, as a multiple of the budget, ≥ 1. Above 1 the gates start open and
            the search prunes while it trains: after the warm-up the cost shrinks along a cubic, as in AdaLoRA, and is
            the budget from :attr:`shrunk` on. At 1, modules are scaled by small gates from the first step and learn
            slowly; but 8 changed little on three pocket tasks (``data/runs/ablation.yaml``). Recorded probabilities are
            those at the budget itself.
        schedule: of both learning rates: ``"linear"`` (to 0 at the last step, as the authors), ``"constant"``, or
            ``"inverse_sqrt"``, 1/√(1 + step/timescale), which does not depend on how long the search will be.
        timescale: steps of that schedule; after three times as many, rates are halved.
        stop: ``"settled"`` ends the search once the sets chosen at half the budget, the budget and twice the budget
            have all been the same for ``window`` steps; ``steps`` is then the most it may take. None goes to the end.
        window: steps that ``"settled"`` asks for.
        clip: gradient norm limit of weights and of α.
        gradient: how α's gradient passes the shift, see :func:`s3pet.gates.shifted_sigmoid`.
        sampling: ``"concrete"`` (relaxed Bernoulli), ``"hard"`` (straight-through) or ``"mean"`` (gate = probability).
            The default is the authors'. On three pocket tasks (``data/runs/ablation.yaml``, nine or more searches
            of 150 steps each) its structures score 0.85 on average, those of ``"hard"`` samples 0.78 and of τ = 0.3
            0.77, random ones 0.82.
        sample_temperature: τ of the samples.
        temperature: β of the shifted sigmoid.
        max_length: tokens per input.
        pooling: of an encoder's head.
        loss: of text-to-text backbones, ``"choice"`` or ``"lm"``, see :mod:`s3pet.objective`.
        precision: of the frozen backbone: ``"float32"`` (as it is) or ``"bfloat16"`` (autocast).
        record_every: steps between records of all probabilities; None records about 50 times, and five times a window
            where that is more often.
    """

    steps: int = 300
    order: str = "first"
    seed: int = 0
    batch_size: int = 32
    lr: float = 3e-3
    vector_lr: float = 1.0
    alpha_lr: float = 0.1
    alpha_optimizer: str = "adamw"
    alpha_split: str = "val"
    warmup: int = 0
    start_budget: float = 1.0
    schedule: str = "linear"
    timescale: int = 30
    stop: str | None = None
    window: int = 20
    clip: float = 2.0
    gradient: str = "normalized"
    sampling: str = "concrete"
    sample_temperature: float = 1.0
    temperature: float = 1.0
    max_length: int = 128
    pooling: str | None = None
    loss: str = "choice"
    precision: str = "float32"
    record_every: int | None = None

    def __post_init__(self) -> None:
        known: dict[str, Sequence[str | None]] = {
            "order": ORDERS,
            "alpha_optimizer": tuple(ALPHA_OPTIMIZERS),
            "alpha_split": ALPHA_SPLITS,
            "schedule": SCHEDULES,
            "stop": STOPS,
            "gradient": GRADIENT_MODES,
            "sampling": SAMPLINGS,
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise SearchError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(str, choices))}")
        positive = ("steps", "batch_size", "lr", "vector_lr", "alpha_lr", "timescale", "window", "clip")
        for name in (*positive, "sample_temperature", "temperature"):
            if not getattr(self, name) > 0:
                raise SearchError(f"{name} must be > 0, got {getattr(self, name)}")

        if not 0 <= self.warmup < self.steps:
            raise SearchError(f"warmup must be at least 0 and below steps ({self.steps}), got {self.warmup}")
        if not 1 <= self.start_budget < math.inf:
            raise SearchError(f"start_budget is a multiple of the budget, at least 1, got {self.start_budget}")

    def rate(self, step: int) -> float:
        """Factor on both learning rates at this step, in (0, 1]."""
        if self.schedule == "linear":
            return 1 - step / self.steps
        return (1 + step / self.timescale) ** -0.5 if self.schedule == "inverse_sqrt" else 1.0

    @property
    def shrunk(self) -> int:
        """Step from which on the expected cost is the budget; until the end of the warm-up α rests."""
        return self.warmup + (round(SHRINKING * (self.steps - self.warmup)) if self.start_budget > 1 else 0)

    def share(self, step: int) -> float:
        """Expected cost at this step, as a multiple of the budget, in [1, ``start_budget``]."""
        if self.start_budget == 1 or step >= self.shrunk:
            return 1.0
        left = 1 - max(0, step - self.warmup) / (self.shrunk - self.warmup)
        return 1 + (self.start_budget - 1) * left**3

    @property
    def every(self) -> int:
        """Steps between records."""
        often = max(1, self.steps // 50)
        return self.record_every or (often if self.stop is None else min(often, max(1, self.window // 5)))
