"""Structures and gates of the authors' code: their form, their counts, and what does not fit."""

import json

import pytest
import torch
from tiny import meta_t5, tiny_bert, tiny_t5

from s3pet import from_s3delta, make_space
from s3pet.errors import ExportError, RunError, StructureMismatchError
from s3pet.structure import select_mask

LORA, BITFIT, LNFIT = {"Lora": {"lora_r": 1}}, {"BitFitParallel": {}}, {"LNFit": {}}
LINEAR = (
    "SelfAttention.q",
    "SelfAttention.k",
    "SelfAttention.v",
    "SelfAttention.o",
    "DenseReluDense.wi",
    "DenseReluDense.wo",
)
MIXED = [
    {name: {"parallel": LORA, "sequential": BITFIT} for name in LINEAR}
    | {name: {"parallel": LNFIT, "sequential": BITFIT} for name in ("layer_norm", "final_layer_norm")},
    {name: {"sequential": {"LowRankAdapter": {}}} for name in ("DenseReluDense", "SelfAttention")},
]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def gates_file(path, structure, probs):
    """In the form that their search writes."""
    kinds = {"lora": ("parallel", "Lora"), "lnfit": ("parallel", "LNFit"), "bitfit": ("sequential", "BitFitParallel")}
    lines = ["=" * 25 + "alphas" + "=" * 25]
    for c, p in zip(structure, probs, strict=True):
        insert, kind = kinds.get(c.pet, ("sequential", "LowRankAdapter"))
        size = c.n_params / 2**20
        lines.append(f"|{c.path:<45s}| {insert:<12s}|{kind:<17s}|{size:<.7f}  |{p - 0.5:<.5f}  |{p:<.5f}  ")
    return write(path, "\n".join([*lines, "=" * 56, ""]))


def test_their_space_has_the_papers_counts_and_order(tmp_path):
    model = meta_t5("large")
    structure = from_s3delta(write(tmp_path / "mix.json", MIXED), model)
    space = make_space(model, "mixed", keep_inert=True)
    assert (len(structure), structure.n_params) == (916, 1_881_088)
    assert structure.names == space.names and structure.origin == {"kind": "s3delta", "from": "mix.json"}


def test_complete_names_and_ends_of_names_are_read(tmp_path):
    configs = [{"encoder.block.1.layer.0.SelfAttention.q": {"parallel": {"Lora": {"lora_r": 2}}},
                "decoder.final_layer_norm": {"parallel": LNFIT, "sequential": BITFIT},
                "EncDecAttention.v": {"parallel": {"Lora": {}}}}]  # fmt: skip
    structure = from_s3delta(write(tmp_path / "a.json", configs), tiny_t5())
    assert structure.names == (
        "encoder.1.attn.q:lora:2", "decoder.0.cross.v:lora:8", "decoder.1.cross.v:lora:8",
        "decoder.final.norm:lnfit", "decoder.final.norm:bitfit",
    )  # fmt: skip


def test_gates_become_a_table(tmp_path):
    model = tiny_t5()
    space = make_space(model, "mixed", keep_inert=True)
    probs = [round(0.05 + 0.9 * (n * 37 % len(space)) / len(space), 5) for n in range(len(space))]
    path = gates_file(tmp_path / "final_alphas.txt", space, probs)
    table = from_s3delta(path, model, budget=600)
    assert [*table["site"]] == [c.site for c in space] and [*table["prob"]] == pytest.approx(probs)
    assert [*table["alpha"]] == pytest.approx([p - 0.5 for p in probs], abs=1e-5)
    assert [*table["chosen"]] == select_mask(torch.tensor(probs), space.costs, 600).tolist()
    expected = sum(p * c.n_params for p, c in zip(probs, space, strict=True))
    table = from_s3delta(path, model)
    assert 0.9 * expected < table.loc[table["chosen"], "n_params"].sum() <= expected + 1
    rank2 = make_space(model, [{"pet": "lora", "ranks": [2]}])
    assert {*from_s3delta(gates_file(path, rank2, [0.5] * len(rank2)), model)["rank"]} == {2}


@pytest.mark.parametrize(
    ("configs", "error", "message"),
    [
        ([{"SelfAttention.q": {"parallel": {"Compacter": {}}}}], ExportError, "'Compacter' has no counterpart here"),
        ([{"SelfAttention.q": {"parallel": {"Lora": {"lora_alpha": 8}}}}], ExportError, "{'lora_alpha': 8}"),
        (
            [{"SelfAttention.qq": {"parallel": LORA}}],
            StructureMismatchError,
            r"called 'SelfAttention.qq' \(1 such names\)",
        ),
        ([{"lm_head": {"sequential": BITFIT}}], StructureMismatchError, "no place for bitfit on lm_head"),
        ([{"SelfAttention.q": {"after": LORA}}], RunError, "'after'; expected parallel or sequential"),
        ([{"SelfAttention.q": ["Lora"]}], RunError, "is not a structure"),
        ([], StructureMismatchError, "places no module"),
        ({"SelfAttention.q": {}}, RunError, "expected a list of configs"),
        ("nothing", RunError, "is not a structure"),
    ],
)
def test_what_does_not_fit_is_named(configs, error, message, tmp_path):
    with pytest.raises(error, match=message):
        from_s3delta(write(tmp_path / "a.json", configs), tiny_t5())


def test_other_models_and_files_are_refused(tmp_path):
    wi = write(tmp_path / "a.json", [{"DenseReluDense.wi": {"parallel": LORA}}])
    with pytest.raises(StructureMismatchError, match=r"A gated T5 has no DenseReluDense.wi"):
        from_s3delta(wi, tiny_t5(gated=True))
    with pytest.raises(StructureMismatchError, match="no module of this BertModel"):
        from_s3delta(wi, tiny_bert())
    path = gates_file(tmp_path / "g.txt", make_space(meta_t5("small"), "mixed"), [0.5] * 220)
    with pytest.raises(StructureMismatchError, match=r"costs|no place"):
        from_s3delta(path, meta_t5("base"))
    for file, text in (("b.txt", "nothing"), ("c.txt", "|a|b|")):
        with pytest.raises(RunError, match=r"is not a structure \(.json\) or final_alphas.txt"):
            from_s3delta(write(tmp_path / file, text), tiny_t5())
    with pytest.raises(RunError, match="No such file"):
        from_s3delta(tmp_path / "nowhere.json", tiny_t5())
