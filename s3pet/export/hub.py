"""A tuned model as a folder for the Hugging Face hub: weights, structure, and a card that says how to load it.

The folder is what ``tuned.save`` writes (kilobytes; the backbone is named, not copied), with ``README.md`` and a map of
the structure. :func:`s3pet.load_tuned` opens it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from s3pet.errors import RunError
from s3pet.export.folders import new_folder
from s3pet.plots import plot_structure, save_figure
from s3pet.plots.style import figure_of
from s3pet.tuning import TunedModel

FIGURE = "structure"


def save_folder(tuned: TunedModel, path: str | Path, *, base: str | None = None, overwrite: bool = False) -> Path:
    """Write the folder of a tuned model with its card.

    Args:
        tuned, path: what to write, and where.
        base: hub id of the backbone for the card; None: the name it was loaded by.
        overwrite: replace a tuned model in the folder. Else RunError.
    """
    with new_folder(path, "README.md", "tuned model with a card", overwrite) as folder:
        tuned.save(folder)
        if tuned.structure is not None and len(tuned.structure):
            axes = plot_structure(tuned.structure)
            save_figure(axes, folder / FIGURE, ["png"], alt=_sentence(tuned))
            figure_of(axes).clear()
        (folder / "README.md").write_text(card(tuned, base or tuned.config["model"]), encoding="utf-8")
    return Path(path)


def push_to_hub(
    tuned: TunedModel, repo_id: str, *, base: str | None = None, private: bool = True, token: str | None = None
) -> str:
    """Upload the folder of :func:`save_folder` to a model repository, made if it is not there; returns its address.

    Raises RunError if the hub cannot be reached or refuses; ``token`` None is the one of ``hf auth login``.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(tuned, folder, base=base)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"s3pet: {tuned!r}"))
        except (HfHubHTTPError, HFValidationError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{repo_id!r} could not be pushed: {reason}. s3pet.export.save_folder writes it") from error


def card(tuned: TunedModel, base: str) -> str:
    """The model card, Markdown with a YAML header: task, scores with their seed, structure, how to load it."""
    metrics, config, structure = tuned.metrics, tuned.config, tuned.structure
    kind = "text-classification" if not tuned.task.regression else "text-regression"
    header = ["---", "library_name: s3pet", f"base_model: {base}", f"tags: [s3pet, parameter-efficient, {kind}]", "---"]
    scores = [f"| {split} | {tuned.task.metric} | {metrics[split]:.4f} |" for split in ("validation", "test") if split in metrics]
    labels = ", ".join(tuned.task.label_names) or f"values from {config['label_words'][0]} to {config['label_words'][-1]}"
    lines = [
        *header, f"# {base} tuned on {config['task']}", _sentence(tuned), "```python",
        f'model, tokenizer = s3pet.load_backbone("{base}")',
        'tuned = s3pet.load_tuned("this-folder", model)  # then tuned.predict(["new text", …])', "```",
        "## Task", f"{config['task']}: {labels}. The prompt of a text-to-text backbone is `{tuned.task.template}`.",
        f"One training, seed {config['seed']}, {config['steps']} steps, learning rate {config['lr']}. One seed says"
        " little about what another would score.", "| split | metric | score |\n|---|---|---|\n" + "\n".join(scores),
    ]  # fmt: skip
    if structure is not None and len(structure):
        rows = Counter[tuple[str, str, str]]()
        for c in structure:
            rows[c.stack, c.role, c.pet] += 1
        table = [f"| {stack} | {role} | {pet} | {count} |" for (stack, role, pet), count in rows.items()]
        origin = ", ".join(f"{key}: {value}" for key, value in structure.origin.items() if isinstance(value, str | int))
        budget = f" of a budget of {structure.budget:,}" if structure.budget else ""
        lines += ["## Structure", f"{structure.n_params:,} trained parameters{budget} ({origin}).", f"![map]({FIGURE}.png)"]
        lines += ["| stack | role | module | number |\n|---|---|---|---|\n" + "\n".join(table)]
    versions = ", ".join(f"{name} {number}" for name, number in config["versions"].items())
    return "\n\n".join([*lines, f"Backbone checksum {config['model_hash']}; {versions}."]).replace("\n\n```", "\n```") + "\n"


def _sentence(tuned: TunedModel) -> str:
    n, head = tuned.metrics["n_params"], tuned.metrics["head_params"]
    what = repr(tuned.structure) if tuned.structure is not None else f"{tuned.config['structure']} tuning"
    return f"{what}; {n:,} parameters in PET modules, {head:,} in the head."
