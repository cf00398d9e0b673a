"""A frozen transformer: loading it, what it is, and where its sites are (:mod:`s3pet.backbones.sites`).

Importing this package does not import torch.
"""

from s3pet.backbones.frozen import backbone_checksum, backbone_kind, check_model, n_parameters, unwrapped
from s3pet.backbones.loading import (
    Backbone,
    backbone_shapes,
    embedded_path,
    list_backbones,
    load_backbone,
    name_of,
    quiet_transformers,
    tokenizer_of,
)
from s3pet.backbones.loans import borrows, preserved

__all__ = [
    "Backbone", "backbone_checksum", "backbone_kind", "backbone_shapes", "borrows", "check_model", "embedded_path",
    "list_backbones", "load_backbone",
    "n_parameters", "name_of", "preserved", "quiet_transformers", "tokenizer_of", "unwrapped",
]  # fmt: skip
