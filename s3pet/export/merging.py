"""A tuned model as a plain model of transformers, without any extra computation.

    LoRA     W ← W + s · B A       (of GPT-2's Conv1D: transposed)
    LNFit    w ← w + δw
    BitFit   b ← b + δb, in a bias that is created where there is none
    BitFit on a norm without a bias: in the linear maps that read it, b ← b + c · W δb

c is the factor between the output of the norm and what the linear map reads: 1, or on T5's head d_model^-0.5. Readers
and factors are measured in a forward pass, not looked up. A bias on attention keys that cannot act is left out. An
adapter is not a change of weights that are there, so it cannot be merged.

A bias where the architecture has none is exact in memory, but ``from_pretrained`` would build the model without it.
Where the config has a switch for it (Llama's ``attention_bias`` and ``mlp_bias``), the switch is set and the other
biases it brings are zeros; where it has none (T5), the model refuses to be saved.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from s3pet.backbones import borrows, preserved, quiet_transformers
from s3pet.backbones.sites import linear_widths
from s3pet.errors import ExportError
from s3pet.files.writing import new_folder, write_tensors
from s3pet.modules import LORA_ALPHA
from s3pet.objectives.own import Own
from s3pet.space import Candidate
from s3pet.supernet import Supernet, is_attached
from s3pet.tuning import REFERENCES, TUNED_MODEL, TunedModel

HEAD = "head.safetensors"
SEARCH_PLAIN = """search a space without them: make_space(model, [{"pet": "lora"}, {"pet": "lnfit"}])"""


class Merged(NamedTuple):
    """A plain model that computes what a tuned one does.

    Attributes:
        model: of transformers, on its own weights. An encoder whose task head reads the pooler has the head in it
            (``…ForSequenceClassification``, with the label names in its config); a model's own head is in it, too.
        difference: largest absolute difference of its logits to the tuned model's, measured when it was merged.
        head: None, or the linear map of an encoder whose pooling ("mean", "first") no class of transformers has; it
            reads the pooled ``last_hidden_state`` of ``model``.
        tokenizer: of the backbone; None if the task has none.
    """

    model: Any
    difference: float
    head: nn.Linear | None
    tokenizer: Any

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write model and tokenizer for ``from_pretrained`` and ``pipeline``; a separate head in ``head.safetensors``.

        Raises ExportError if ``from_pretrained`` would lose biases, and RunError if the folder holds a model.
        """
        old = ("model*.safetensors*", HEAD)
        with quiet_transformers(), new_folder(path, "config.json", "model", overwrite, foreign=old) as folder:
            self.model.save_pretrained(folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            if self.head is not None:
                write_tensors(self.head.state_dict(), folder / HEAD)
        return Path(path)


@borrows("merging", short=True, of=lambda tuned: tuned.learner.backbone)
@torch.no_grad()
def merge(tuned: TunedModel) -> Merged:
    """Put the trained tensors of a tuned model into the weights of a copy of its backbone, and compare the two.

    Logits are compared on random tokens and, where the task has rows, on some of these; with an objective of your own,
    on what its loss passes to the model. They may differ by √ε of the weights' type times the largest logit (at least
    1): 3.5e-4 in float32, 0.03 in float16, 0.09 in bfloat16, where merged weights are rounded once more. The backbone
    and the tuned model stay as they are. Ways to tune without a structure (``"full"``, ``"head"``) give the plain
    model, too.

    Raises:
        ExportError: adapters, which are named; quantised or shared weights; modules of another library; an attached
            supernet; or logits that differ by more than rounding.
    """
    TUNED_MODEL.check(ExportError, tuned=tuned)
    objective: Any = tuned.learner.objective
    target, backbone = tuned.learner.target, tuned.learner.backbone
    if tuned.structure is None and tuned.config["structure"] not in REFERENCES:
        raise ExportError(f"modules of {tuned.config['structure']} are another library's; merge them with it")
    if is_attached(backbone):
        raise ExportError("a supernet is attached to this model; leave the `with` or detach it, then merge")
    own = isinstance(objective, Own)
    model, batches = copy.deepcopy(backbone), [own_probe(tuned)] if own else [*probes(tuned)]
    with preserved(backbone, objective):
        for part in (model, backbone, objective):
            part.eval()
        if isinstance(target, Supernet):
            merge_into(model, target.candidates, target.tensors(), batches[0])
        if own:
            with tuned.learner.attached(), objective.with_head():
                expected = _numbers(backbone(**batches[0]))
            heads = objective.head.children() if objective.heads else ()
            for path, trained in zip(objective.heads, heads, strict=True):
                model.get_submodule(path).load_state_dict(trained.state_dict())
            difference = _compare(_numbers(model(**batches[0])), expected)
            return Merged(model.eval(), difference, None, getattr(objective.own, "tokenizer", tuned.task.tokenizer))
        with tuned.learner.attached():
            expected = [backbone(**batch)[0] for batch in batches]
            scores = [] if objective.head is None else [objective.scores(batch) for batch in batches]
        difference, head = _compare([model(**batch)[0] for batch in batches], expected), None
        if objective.head is not None:
            classifier, head = classifier_of(tuned, model), copy.deepcopy(objective.head.out)
            if classifier is not None:
                if "save_pretrained" in vars(model):  # it refuses
                    classifier.save_pretrained = model.save_pretrained
                model, head = classifier, None
                difference = _compare([model(**batch).logits for batch in batches], scores)
    return Merged(model.eval(), difference, head, tuned.task.tokenizer)


def merge_into(
    model: nn.Module, candidates: Iterable[Candidate], tensors: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> None:
    """Add PET tensors, named as a supernet names them, to the weights of a model in place; raises as :func:`merge`.

    ``batch`` is any input of the model; a forward pass of it shows which linear maps read which norm.
    """
    candidates, modules = tuple(candidates), dict(model.named_modules())
    if adapters := [c.name for c in candidates if c.pet not in ("lora", "lnfit", "bitfit")]:
        what = f"adapters cannot be merged into weights: {', '.join(adapters[:3])} ({len(adapters)} in all)"
        raise ExportError(f"{what}. Use tuned.save and load_tuned, or {SEARCH_PLAIN}")
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    biases, created = dict[str, Tensor](), set[str]()
    for c in candidates:
        module: Any = modules[c.path]
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise ExportError(f"{c.path} is quantised ({type(module).__name__}); load the backbone in a float type")
        if owners[id(weight)] > 1 and c.pet != "bitfit":
            raise ExportError(f"the weight of {c.path} is shared with another module, which merging would change, too")
        if c.pet == "lora":
            a, b = (tensors[f"{c.name}/{name}"].double() for name in ("A", "B"))
            delta = (LORA_ALPHA / len(a)) * b @ a
            _add(module, "weight", delta.T if isinstance(module, Conv1D) else delta)
        elif c.pet == "lnfit":
            _add(module, "weight", tensors[f"{c.name}/w"])
        elif c.inert:
            continue
        elif linear_widths(module) or isinstance(module, nn.LayerNorm) or "bias" in dict(module.named_parameters()):
            created |= _add(module, "bias", tensors[f"{c.name}/b"], c.path)
        else:  # another norm would not use a bias
            biases[c.path] = tensors[f"{c.name}/b"]
    for path, factors in _readers(model, biases, batch).items():
        for reader, factor in factors.items():
            linear: Any = modules[reader]
            weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight
            created |= _add(linear, "bias", factor * F.linear(biases[path].to(weight.dtype), weight), reader)
    if created:
        _declare(model, created)


def _add(module: Any, name: str, delta: Tensor, path: str = "") -> set[str]:
    """Add to a parameter in at least float32, or create it; the name of what was created."""
    old = getattr(module, name, None)
    if old is not None:
        old.copy_(old.to(torch.promote_types(old.dtype, torch.float32)) + delta.to(old.device))
        return set()
    weight = module.weight
    copied = delta.to(weight.device, weight.dtype, copy=True)  # never the tuned model's own tensor
    module.register_parameter(name, nn.Parameter(copied, weight.requires_grad))
    return {f"{path}.{name}"}


def _readers(model: nn.Module, norms: Collection[str], batch: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Linear maps that read the output of these norms, each with the factor between the two.

    The gradients of all that they read must add up to the gradient at the norm; otherwise something else reads it, too.
    """
    if not norms:
        return {}
    outputs, inputs, hooks = dict[str, Tensor](), dict[str, Tensor](), []
    anchor = torch.zeros((), requires_grad=True)  # so that there is a gradient

    def note_output(module: nn.Module, args: tuple, output: Tensor, path: str) -> Tensor:
        changed = output + anchor.to(output)
        return outputs.setdefault(path, changed) if path not in outputs else changed

    def note_input(module: nn.Module, args: tuple, path: str) -> tuple | None:
        if not args or path in inputs:
            return None
        inputs[path] = args[0] + anchor.to(args[0])  # a tensor of its own: its gradient is that of this reader alone
        return (inputs[path], *args[1:])

    for path, module in model.named_modules():
        if path in norms:
            hooks.append(module.register_forward_hook(partial(note_output, path=path)))
        elif isinstance(module, (nn.Linear, Conv1D)):
            hooks.append(module.register_forward_pre_hook(partial(note_input, path=path)))
    try:
        with torch.enable_grad():
            results = [part for part in _numbers(model(**batch))[:1] if part.requires_grad]
            generator = torch.Generator().manual_seed(0)
            weights = [torch.randn(part.shape, generator=generator).to(part) for part in results]
            parts = {**outputs, **{f"{path} reads": x for path, x in inputs.items()}}
            slopes = torch.autograd.grad(results, [*parts.values()], weights, allow_unused=True) if results else ()
    finally:
        for hook in hooks:
            hook.remove()
    gradients = {name: slope.double() for name, slope in zip(parts, slopes, strict=False) if slope is not None}
    readers: dict[str, dict[str, float]] = {norm: {} for norm in norms}
    for norm in norms:
        y, whole = (part.get(norm, torch.zeros(())).double() for part in (outputs, gradients))
        tolerance = torch.finfo(outputs[norm].dtype if norm in outputs else y.dtype).eps ** 0.5
        for path, x in inputs.items():
            factor = float((x * y).sum() / y.square().sum()) if x.shape == y.shape else 0.0
            if factor and bool((x - factor * y).norm() <= tolerance * x.double().norm()):
                readers[norm][path] = factor
        read = [factor * gradients.get(f"{path} reads", torch.zeros(())) for path, factor in readers[norm].items()]
        if not read or bool((whole - sum(read)).norm() > tolerance * whole.norm()):
            what = "not only linear maps read it" if read else "no linear map reads it"
            how = "retrain a structure without BitFit there, or use tuned.save and load_tuned"
            raise ExportError(f"BitFit on {norm} cannot be merged: the norm has no bias, and {what}; {how}")
    return readers


def _declare(model: Any, created: set[str]) -> None:
    """Set the switches of the config that give the created biases a place, or let the model refuse to be saved."""
    if not hasattr(model, "config"):  # a module of torch, which is saved by other means
        return

    def shapes(*switches: str) -> dict[str, torch.Size]:
        config = copy.deepcopy(model.config)
        for switch in switches:
            setattr(config, switch, True)
        with torch.device("meta"), quiet_transformers():
            return {name: tensor.shape for name, tensor in type(model)(config).state_dict().items()}

    plain, switches = shapes(), list[str]()
    for switch in [name for name, value in model.config.to_dict().items() if value is False and "bias" in name]:
        brings = shapes(switch).keys() - plain.keys()
        if brings & created and all(name.endswith(".bias") for name in brings):
            switches.append(switch)
    extra = {name: shape for name, shape in shapes(*switches).items() if name not in plain}
    if homeless := sorted(created - plain.keys() - extra.keys()):
        model.save_pretrained = partial(_refuse, homeless)
        return
    for switch in switches:
        setattr(model.config, switch, True)
    for name in extra.keys() - created:
        _add(model.get_submodule(name.removesuffix(".bias")), "bias", torch.zeros(extra[name]), name)


def _refuse(names: list[str], *args: Any, **kwargs: Any) -> None:
    """Instead of ``save_pretrained`` of a model whose created biases ``from_pretrained`` would not load."""
    what = f"from_pretrained would lose {len(names)} biases of this model ({', '.join(names[:3])}, …)"
    how = f"use it in memory, keep it by tuned.save and load_tuned, or {SEARCH_PLAIN}"
    raise ExportError(f"{what}: its architecture has no place for them. So {how}")


def _compare(logits: list[Tensor], expected: list[Tensor]) -> float:
    difference = max(float((one - other).abs().max()) for one, other in zip(logits, expected, strict=True))
    scale = max(1.0, *(float(other.abs().max()) for other in expected))
    if not difference <= torch.finfo(logits[0].dtype).eps ** 0.5 * scale:
        why = "a module of this model does not use its weights or bias as others of its kind do"
        how = "Use tuned.save and load_tuned, or retrain a structure of LoRA only"
        raise ExportError(f"merging changed the logits by up to {difference:.2g}: {why}. {how}")
    return difference


def probes(tuned: TunedModel) -> Iterator[dict[str, Tensor]]:
    """Inputs of the backbone: random tokens in rows of different lengths; then rows of the task, if it has any."""
    objective: Any = tuned.learner.objective
    generator = torch.Generator().manual_seed(0)
    vocabulary = objective.model.get_input_embeddings().num_embeddings
    lengths = [min(length, objective.settings.max_length) for length in (12, 7, 3, 12)]
    draw = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    some = tuned.task.validation[:8]
    for rows in [[{"input_ids": ids, "target": 0} for ids in draw], *([objective.encode(some)] if some else [])]:
        batch = {name: tensor for name, tensor in objective.collate(rows).items() if name != "target"}
        if objective.model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = batch["input_ids"][:, :5]
        yield batch


def own_probe(tuned: TunedModel) -> dict[str, Any]:
    """What an objective of the user's own passes to the backbone in the loss of some rows."""
    objective: Any = tuned.learner.objective
    names, calls = list(inspect.signature(objective.model.forward).parameters), list[dict[str, Any]]()

    def note(module: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        calls.append({**dict(zip(names, args, strict=False)), **named})

    rows = [row for row, _ in zip(tuned.task.validation, range(8), strict=False)]  # a slice of a Dataset is columns
    if not rows:
        how = "pass the task: load_tuned(path, model, task)"
        raise ExportError(f"a merged model is compared on rows of task {tuned.task.name!r}, which has none here; {how}")
    with objective.model.register_forward_pre_hook(note, with_kwargs=True):
        objective.loss(objective.collate(objective.encode(rows)))
    if not calls:
        raise ExportError(f"{objective.name}.loss does not call the model, so a merged one cannot be compared")
    return calls[0]


def _numbers(output: Any) -> list[Tensor]:
    """The tensors of a model's output: logits, and the loss if labels were passed."""
    parts = output.values() if isinstance(output, Mapping) else output
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]


def classifier_of(tuned: TunedModel, model: Any) -> Any:
    """The encoder (taken over, not copied) with the task head as a model for sequence classification, or None.

    None if the head reads something else than the pooler, or transformers has no such class with that pooler.
    """
    objective: Any = tuned.learner.objective
    encoder, task = getattr(model, "base_model", model), tuned.task
    config = copy.deepcopy(encoder.config)
    config.num_labels, names = task.n_labels, task.label_names or ("value",)
    config.id2label, config.label2id = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
    config.problem_type = "regression" if task.regression else "single_label_classification"
    if objective.settings.pooling != "pooler":
        return None
    try:
        with torch.device("meta"), quiet_transformers():
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:  # no such class
        return None
    head: Any = getattr(classifier, "classifier", None)
    out = head if isinstance(head, nn.Linear) else getattr(head, "out_proj", None)
    if out is None:
        return None
    head.to_empty(device=objective.device).to(encoder.dtype).requires_grad_(False)
    out.load_state_dict(objective.head.out.state_dict())
    if out is not head:  # RoBERTa: the pooler is a part of the head
        head.dense.load_state_dict(encoder.pooler.dense.state_dict())
        encoder.pooler = None
    encoder.config = config
    setattr(classifier, classifier.base_model_prefix, encoder)
    return classifier.eval()
