"""A tuned model as a folder for the Hugging Face hub: what ``tuned.save`` writes (kilobytes), a card, and a map.

The backbone is named, not copied. :func:`s3pet.load_tuned` opens the folder.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

from s3pet.errors import ExportError, RunError
from s3pet.files.kinds import FLAG, TEXT, optional
from s3pet.files.writing import new_folder, write_text
from s3pet.objectives.own import Own
from s3pet.objectives.ready import can_be_rebuilt
from s3pet.plots import plot_structure, save_figure
from s3pet.tuning import TUNED_MODEL, TunedModel

CARD = """---
library_name: s3pet
base_model: {base}
tags: [s3pet, parameter-efficient-tuning]
---

# {base} tuned on {task}

{what}; {n_params:,} parameters in PET modules, {head_params:,} in the head.

```python
{model}
tuned = s3pet.load_tuned("this-folder", model{more})  # then tuned.predict([…])
```

{learns}.

One training with seed {seed}, {steps} steps, learning rate {lr}; other seeds score differently.

| split | metric | score |
|---|---|---|
{scores}
{structure}
Backbone checksum {model_hash}; {versions}.
"""
STRUCTURE = """
## Structure

Origin: {origin}; budget: {budget}.

![Map of the structure](structure.png)

| stack | role | module | number |
|---|---|---|---|
{rows}
"""


def save_folder(tuned: TunedModel, path: str | Path, *, base: str | None = None, overwrite: bool = False) -> Path:
    """Write the folder of a tuned model with its card.

    ``base`` is the hub id of the backbone, for the card; None: the name it was loaded by. Raises RunError if the folder
    holds a card and ``overwrite`` is not set. Of an objective of your own the card has the name and the settings.
    """
    TUNED_MODEL.check(ExportError, tuned=tuned)
    optional(TEXT).check(ExportError, base=base)
    with new_folder(path, "README.md", "tuned model with a card", overwrite) as folder:
        tuned.write(folder)
        if tuned.structure is not None and len(tuned.structure):
            save_figure(plot_structure(tuned.structure), folder / "structure", ["png"], alt=repr(tuned.structure))
        write_text(card(tuned, base or tuned.config["model"]), folder / "README.md")
    return Path(path)


def push_to_hub(
    tuned: TunedModel, repo_id: str, *, base: str | None = None, private: bool = True, token: str | None = None
) -> str:
    """Upload what :func:`save_folder` writes to a model repository, made if it is not there; returns its address.

    Raises RunError if the hub cannot be reached or refuses. Without a ``token``, that of ``hf auth login`` is used.
    """
    from huggingface_hub import HfApi

    TEXT.check(ExportError, repo_id=repo_id)
    FLAG.check(ExportError, private=private)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(tuned, folder, base=base)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"s3pet: {tuned!r}"))
        except (OSError, ValueError, RuntimeError) as error:  # the hub's own errors are among them
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{repo_id!r} could not be pushed: {reason}. s3pet.export.save_folder writes it") from error


def card(tuned: TunedModel, base: str) -> str:
    """The model card: Markdown with a YAML header."""
    metrics, structure, task, objective = tuned.metrics, tuned.structure, tuned.task, tuned.learner.objective
    splits, part = [split for split in ("validation", "test") if split in metrics], ""
    model, more = f'model, tokenizer = s3pet.load_backbone("{base}")', ""
    if isinstance(objective, Own):
        declared = objective.declared()
        learns = f"Objective: `{objective.name}` with `{json.dumps(declared['settings'])}`"
        if objective.heads:
            backbone = objective.model
            kind, n = type(backbone).__name__, getattr(backbone.config, "num_labels", 2)
            model = f'model = transformers.{kind}.from_pretrained("{base}", num_labels={n})'
            more = f', tokenizer=transformers.AutoTokenizer.from_pretrained("{base}")'
        if not can_be_rebuilt(declared):
            more = f", objective={objective.name}(…)"
    else:
        scale = tuned.config["label_words"]
        learns = f"Labels: {', '.join(task.label_names) or f'values from {scale[0]} to {scale[-1]}'}"
        learns += f". A text-to-text backbone reads `{task.template}`"
    if structure is not None and len(structure):
        counts = Counter((c.stack, c.role, c.pet) for c in structure)
        rows = "\n".join(f"| {' | '.join(place)} | {count} |" for place, count in counts.items())
        origin = ", ".join(f"{k} {v}" for k, v in structure.origin.items() if isinstance(v, str | int)) or "custom"
        part = STRUCTURE.format(origin=origin, budget=structure.budget or "none", rows=rows)
    return CARD.format(
        **{name: tuned.config[name] for name in ("task", "seed", "steps", "lr", "model_hash")},
        **{name: metrics[name] for name in ("n_params", "head_params")},
        base=base,
        what=tuned.config["structure"] if structure is None else structure,
        model=model,
        more=more,
        learns=learns,
        scores="\n".join(f"| {split} | {metrics['metric']} | {metrics[split]:.4f} |" for split in splits),
        structure=part,
        versions=", ".join(f"{name} {number}" for name, number in tuned.config["versions"].items()),
    )
