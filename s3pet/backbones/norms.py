"""What a norm computes: its form, and its normalised input before the norm's own weight and bias."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize(site: nn.Module, x: Tensor) -> Tensor:
    """The input of a norm, [..., d], normalised as :func:`norm_form` says, before the norm's own weight and bias."""
    return _normalized(site, x, norm_form(site))


def norm_form(site: nn.Module) -> str | None:
    """What a norm computes before its weight: ``"layer"`` (mean-centred), ``"rms"``, or None for anything else.

    It is probed, not named: the output of an affine norm changes by its normalised input when the weight rises by one.
    """
    if site not in _FORMS:
        with torch.device("cpu"):  # whatever the default is
            _FORMS[site] = _probed_form(site)
    return _FORMS[site]


_FORMS: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()  # so that each norm is probed once


def _probed_form(site: nn.Module) -> str | None:
    own = dict(site.named_parameters(recurse=False))
    if list(site.children()) or "weight" not in own or own["weight"].ndim != 1:
        return None
    twin = copy.copy(site)  # shares nothing that changes
    x = 0.02 + 0.03 * torch.sin(1.7 * torch.arange(3.0 * len(own["weight"]))).view(1, 3, -1)  # small: epsilon counts
    outputs = []
    for level in (0.0, 1.0):
        values = {name: torch.full(p.shape, level if name == "weight" else 0.0) for name, p in own.items()}
        twin.__dict__["_parameters"] = {**site._parameters, **values}  # a bias may be None
        try:
            outputs.append(type(twin).forward(twin, x))  # not what a device map has put around it
        except Exception:  # not a function of one tensor [batch, tokens, d]
            return None
    if not isinstance(outputs[0], Tensor) or outputs[0].shape != x.shape:
        return None
    change = (outputs[1] - outputs[0]).detach()
    agrees = (f for f in ("layer", "rms") if torch.allclose(change, _normalized(site, x, f), rtol=1e-3, atol=1e-3))
    return next(agrees, None)


def _normalized(site: nn.Module, x: Tensor, form: str | None) -> Tensor:
    epsilon: Any = getattr(site, "variance_epsilon", getattr(site, "eps", 1e-6))  # T5 and Llama, others
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon  # as nn.RMSNorm
    if form == "layer":
        return F.layer_norm(x, x.shape[-1:], None, None, epsilon)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)
