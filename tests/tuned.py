"""Tuned models with random tensors: what leaves the library is compared, not what was learned."""

import torch
from toy import short_task

from s3pet import Structure, make_space, retrain


def structure_of(model, *pets, keep=lambda candidate: True, **options):
    """All candidates of some PET modules, inert ones and cross-attention included."""
    rules = [{"pet": pet, **options} for pet in pets]
    space = make_space(model, rules, keep_inert=True, cross_attention=True)
    return Structure(tuple(c for c in space if keep(c)), space.model_id)


def logits(model, batch):
    """What the model returns first, without gradients."""
    with torch.no_grad():
        return model(**batch)[0]


def tuned_at_random(model, structure, task=None, std=0.1, **options):
    """Trained for one step; then every trained tensor is drawn anew, none is zero."""
    tuned = retrain(model, task or short_task(), structure, steps=1, batch_size=4, evaluations=1, test=False, **options)
    generator = torch.Generator().manual_seed(3)
    for tensor in tuned.tensors().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)
    return tuned
