"""Spaces: the paper's counts and order on T5, every family, inert candidates proven inert."""

import copy

import numpy as np
import pytest
import torch
from tiny import FAMILIES, meta_t5, tiny_batch, tiny_bert, tiny_llama, tiny_t5
from transformers import LlamaForCausalLM, T5ForConditionalGeneration
from zoo import zoo_model

from s3pet import make_space
from s3pet.backbones.norms import norm_form
from s3pet.backbones.sites import find_sites
from s3pet.errors import BackboneError, SpaceError, UnknownSiteError
from s3pet.modules import PETS
from s3pet.space import Candidate, Rule
from s3pet.supernet import attach


@pytest.mark.parametrize(
    ("size", "mixed", "lora", "inert"),
    [
        ("small", (232, 236_672), (72, 110_592), 12),
        ("base", (460, 706_944), (144, 331_776), 24),
        ("large", (916, 1_881_088), (288, 884_736), 48),
    ],
)
def test_spaces_of_the_paper(size, mixed, lora, inert):
    model = meta_t5(size)
    space = make_space(model, "mixed", keep_inert=True)
    assert (len(space), space.n_params) == mixed
    assert sum(candidate.inert for candidate in space) == inert
    assert len(make_space(model, "mixed")) == mixed[0] - inert
    space = make_space(model, "lora")
    assert (len(space), space.n_params) == lora


def authors_order(model):
    """The authors' list, computed from their rule: suffixes in named_modules() order, then the block adapters."""
    linears = [f"SelfAttention.{p}" for p in "qkvo"] + ["DenseReluDense.wi", "DenseReluDense.wo"]
    names = [name for name, _ in model.named_modules()]
    order = []
    for name in names:
        if any(name.endswith("." + suffix) for suffix in linears):
            order += [(name, "lora"), (name, "bitfit")]
        elif name.split(".")[-1] in ("layer_norm", "final_layer_norm"):
            order += [(name, "lnfit"), (name, "bitfit")]
    blocks = [name for name in names if name.split(".")[-1] in ("SelfAttention", "DenseReluDense")]
    return order + [(name, "lowrank_adapter") for name in blocks]


@pytest.mark.parametrize("size", ["small", "large"])
def test_candidates_come_in_the_authors_order(size):
    model = meta_t5(size)
    space = make_space(model, "mixed", keep_inert=True)
    assert [(candidate.path, candidate.pet) for candidate in space] == authors_order(model)
    lora = [(name, pet) for name, pet in authors_order(model) if pet == "lora"]
    assert [(candidate.path, candidate.pet) for candidate in make_space(model, "lora")] == lora


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_norm_and_block_is_a_site(family):
    model = FAMILIES[family]()
    sites = find_sites(model)
    assert len({site.address for site in sites}) == len(sites)
    stacks = [model.encoder, model.decoder] if hasattr(model, "decoder") else [getattr(model, "encoder", model)]
    if family == "llama":
        stacks = [model.model.layers]
    wanted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(module is part for stack in stacks for part in stack.modules())
    }
    assert wanted == {site.path for site in sites if site.kind == "linear"}
    norms = {name for name, module in model.named_modules() if "Norm" in type(module).__name__}
    assert norms == {site.path for site in sites if site.kind == "norm"}
    for site in sites:
        module = model.get_submodule(site.path)
        if site.kind == "linear":
            assert (site.d_in, site.d_out) == (module.in_features, module.out_features)


def test_gated_ffns_are_in_the_space():
    table = make_space(tiny_t5(gated=True), "lora").table()
    roles = table[table.layer == 0].groupby("stack").role.apply(list)
    assert roles["encoder"] == ["attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.in", "ffn.out"]


def test_adapters_sit_on_blocks_before_the_residual():
    table = make_space(tiny_bert(), [Rule("adapter")]).table()
    assert table.path[0] == "encoder.layer.0.attention.output.dense"
    assert table["rank"].tolist() == [8] * len(table)


@pytest.mark.parametrize("family", FAMILIES)
def test_inert_means_that_no_bias_can_change_the_output(family):
    model = FAMILIES[family]()
    space = make_space(model, [Rule("bitfit", roles=("attn.k", "cross.k") if "t5" in family else ("attn.k",))],
                       keep_inert=True, cross_attention=True)  # fmt: skip
    batch = tiny_batch(model)
    with torch.no_grad(), attach(model, space) as supernet:
        before = model(**batch)[0]
        for weight in supernet.weights:
            weight.normal_(generator=torch.Generator().manual_seed(0))
        change = float((model(**batch)[0] - before).abs().max() / before.abs().max())
    inert = family != "llama"  # rotary positions turn the keys after their bias
    assert [candidate.inert for candidate in space] == [inert] * len(space)
    assert (change < 1e-5) == inert, change


def test_a_bias_elsewhere_is_not_inert():
    model = tiny_t5()
    space = make_space(model, [Rule("bitfit")], cross_attention=True)
    batch = tiny_batch(model)
    for index, candidate in enumerate(space):
        with torch.no_grad(), attach(model, space) as supernet:
            before = model(**batch)[0]
            supernet.weights[index].normal_(generator=torch.Generator().manual_seed(0))
            change = float((model(**batch)[0] - before).abs().max())
        assert change > 1e-4, candidate.name


def test_redundant_candidates_name_their_twin():
    table = make_space(tiny_t5(), "mixed").table().set_index(["site", "pet"])
    assert table.redundant["encoder.0.attn", "lowrank_adapter"] == "encoder.0.attn.o:bitfit"
    assert table.redundant["decoder.1.ffn", "lowrank_adapter"] == "decoder.1.ffn.out:bitfit"


def test_cross_attention_is_added_on_request():
    model = tiny_t5()
    without, with_it = make_space(model, "mixed"), make_space(model, "mixed", cross_attention=True)
    added = {candidate.role for candidate in with_it} - {candidate.role for candidate in without}
    assert added == {"cross.q", "cross.k", "cross.v", "cross.o", "cross"}


def test_rules_choose_roles_layers_and_ranks():
    space = make_space(tiny_t5(), [{"pet": "lora", "roles": "attn.[qv]", "layers": [1], "ranks": [1, 4]}])
    assert {candidate.layer for candidate in space} == {1}
    assert [candidate.name for candidate in space][:4] == [
        "encoder.1.attn.q:lora:1", "encoder.1.attn.q:lora:4", "encoder.1.attn.v:lora:1", "encoder.1.attn.v:lora:4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ("mixd", SpaceError, "nearest: 'mixed'"),
        ([], SpaceError, "at least one rule"),
        ([Rule("lora", layers=(99,))], SpaceError, "matches no site"),
        ([Rule("lora", roles=("attn.queries",))], UnknownSiteError, "no site of this model has role"),
        ([Rule("lora", roles=("*.norm",))], SpaceError, "fits on"),
        ([Rule("prefix")], UnknownSiteError, "PET module 'prefix'"),
        ([{"pet": "lora", "size": 3}], SpaceError, "a rule is .* unexpected keyword argument 'size'"),
        (["lora"], SpaceError, "a rule is a Rule or a mapping such as"),
        ([{"roles": "attn.q"}], SpaceError, "a rule is .* missing .* argument: 'pet'"),
        ([{"pet": "lora", "ranks": -1}], SpaceError, "ranks of a rule must be whole numbers of at least 1, not -1"),
        ([Rule("bitfit", ranks=(2,))], SpaceError, "bitfit has no size"),
        ([Rule("lora", layers=(0, 2))], SpaceError, r"layer 2.*encoder has layers 0 to 1, decoder has layers 0 to 1"),
        ([Rule("lora", layers=(-1, 1, 7))], SpaceError, r"no site in layer -1, 7: encoder has layers 0 to 1"),
        ([Rule("lora", roles=("cross.q",), layers=(2,))], SpaceError, r"layer 2: decoder has layers 0 to 1$"),
        ([Rule("lnfit", roles=("final.norm",), layers=(0,))], SpaceError, r"layer 0: its sites are outside the layers"),
        ([Rule("bitfit", roles=("attn.k",))], SpaceError, "inert"),
    ],
)
def test_bad_rules_say_what_is_wrong(rules, error, message):
    with pytest.raises(error, match=message):
        make_space(tiny_t5(), rules)


@pytest.mark.parametrize(
    "fields",
    [
        {"pet": 3},
        {"roles": 3},
        {"roles": ("attn.q", None)},
        {"roles": ()},
        {"stacks": None},
        {"stacks": b"encoder"},
        {"layers": "1"},
        {"layers": (1.5,)},
        {"layers": True},
        {"layers": ((0, 1),)},
        {"ranks": 1.0},
        {"ranks": ("1",)},
        {"ranks": (1, False)},
        {"ranks": (0,)},
        {"ranks": []},
        {"ranks": {"r": 1}},
    ],
)
def test_fields_of_a_wrong_type_are_refused(fields):
    name, value = next(iter(fields.items()))
    with pytest.raises(SpaceError, match=f"{name} of a rule must be .*, not ") as error:
        Rule(**{"pet": "lora"} | fields)
    assert repr(value) in str(error.value)
    with pytest.raises(SpaceError, match=f"{name} of a rule must be"):
        make_space(tiny_t5(), [{"pet": "lora"} | fields])


def test_single_values_and_lists_are_kept_as_tuples():
    plain = Rule("lora", roles=("attn.q",), stacks=("encoder",), layers=(0, 1), ranks=(4,))
    assert Rule("lora", roles="attn.q", stacks="encoder", layers=range(2), ranks=np.int64(4)) == plain
    mapping = {"pet": "lora", "roles": ["attn.q"], "stacks": "encoder", "layers": [0, 1], "ranks": 4}
    assert make_space(tiny_t5(), [mapping]) == make_space(tiny_t5(), [plain])
    assert type(Rule("lora", ranks=np.array([4])).ranks[0]) is int


def test_a_model_without_layers_says_what_it_has():
    with pytest.raises(BackboneError, match=r"Linear has no list of layers with linear maps in it \(1 linear maps"):
        make_space(torch.nn.Linear(2, 2))


class Layer(torch.nn.Module):
    """A layer whose widths, calls and outputs are not those that its names suggest."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(6)
        self.up, self.down = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)
        self.unused, self.matrix = torch.nn.Linear(6, 6), torch.nn.Parameter(torch.ones(6, 6))
        self.group = torch.nn.GroupNorm(2, 6)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)) @ torch.eye(8)) @ self.matrix


class Stack(torch.nn.Module):
    """No transformer of a known family: no config, one input ``x`` of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Layer() for _ in range(3))
        self.head = torch.nn.Linear(6, 2)

    def forward(self, x, times=2):
        for block in self.blocks:
            for _ in range(times):
                x = block(x)
        return self.head(x)


def test_any_module_with_layers_has_a_space_if_it_is_told_how_to_run_it():
    model = Stack()
    with pytest.raises(
        BackboneError, match=r"could not be run.*keyword arguments of one forward pass.*example={'x': …}"
    ):
        make_space(model)
    space = make_space(model, example={"x": torch.randn(2, 5, 6)})
    assert {c.site for c in space if c.layer == 2} == {"encoder.2.ffn.norm", "encoder.2.ffn.in", "encoder.2.ffn.out",
                                                       "encoder.2.ffn"}  # fmt: skip
    assert space.table().calls.eq(2).all(), "each layer runs twice"
    reasons = dict(space.left_out)
    assert "not called by the module around it" in reasons["blocks.0.unused"]
    assert "neither a LayerNorm nor an RMSNorm" in reasons["blocks.0.group"]
    assert "raw matrix" in reasons["blocks.0.matrix"] and "outside the layers" in reasons["head"]
    assert "places left out" in repr(space) and len(space.left_out) == 10


def test_what_the_rules_leave_out_is_listed_with_the_rest():
    space = make_space(tiny_t5(), "lora")
    reasons = dict(space.left_out)
    assert "cross_attention=True" in reasons["decoder.block.0.layer.1.EncDecAttention.q"]
    assert reasons["encoder.final_layer_norm"] == "no rule of this space covers it"
    assert reasons["lm_head"] == "the output head"
    assert not {c.path for c in space} & set(reasons)


def test_a_named_space_skips_what_a_model_does_not_have_and_a_rule_of_the_user_does_not():
    model = Stack()
    for layer in model.blocks:
        layer.norm = torch.nn.Identity()
    example = {"x": torch.randn(2, 5, 6)}
    space = make_space(model, example=example)
    assert space.notes == ("nothing for lnfit: this model has no norm site",) and space.notes[0] in repr(space)
    with pytest.raises(SpaceError, match="lnfit fits on nothing here"):
        make_space(model, [Rule("lnfit")], example=example)


def test_rules_exclude_roles_and_take_ranges_of_layers():
    model = tiny_t5()
    roles = {c.role for c in make_space(model, [Rule("lora", exclude=("ffn.*", "attn.k"))])}
    assert roles == {"attn.q", "attn.v", "attn.o"}
    assert {c.layer for c in make_space(model, [Rule("lora", layers=range(1, 2))])} == {1}
    with pytest.raises(UnknownSiteError, match=r"no site of this model has role 'atn.k'; nearest: 'attn.k'"):
        make_space(model, [Rule("lora", exclude="atn.k")])
    with pytest.raises(SpaceError, match="no site in layer 2, 3"):
        make_space(model, [Rule("lora", layers=range(4))])


class Centred(torch.nn.Module):
    """x / rms(x) with the mean taken off first, and a weight that starts at zero: a LayerNorm by another name."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.randn(8)), 1e-3

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * (1 + self.weight)


def test_a_norm_is_known_by_what_it_computes():
    class Wrong(Centred):  # its epsilon is another than it says
        def forward(self, x):
            return super().forward(10 * x)

    assert norm_form(Centred()) == norm_form(torch.nn.LayerNorm(8, bias=False)) == "layer"
    assert norm_form(torch.nn.RMSNorm(8)) == "rms"
    assert norm_form(Wrong()) is norm_form(torch.nn.GroupNorm(2, 8)) is norm_form(torch.nn.Linear(8, 8)) is None
    site, x = Centred(), torch.randn(4, 8)
    raised = copy.deepcopy(site)
    with torch.no_grad():
        raised.weight += 0.5
    delta = PETS["lnfit"].delta({"w": torch.full((8,), 0.5)}, x, site(x), site)
    torch.testing.assert_close(site(x) + delta, raised(x))


@pytest.mark.parametrize("make_model", [tiny_bert, lambda: zoo_model("deberta-v3"), lambda: zoo_model("gpt-j")])
def test_inert_is_what_the_gradient_says(make_model):
    model = make_model().double()
    space = make_space(model, [Rule("bitfit")], keep_inert=True)
    with attach(model, space) as supernet:
        output = model(**tiny_batch(model))[0]
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        gradients = [float(weight.grad.abs().max()) for weight in supernet.weights]
    for candidate, gradient in zip(space, gradients, strict=True):
        assert candidate.inert == (gradient < 1e-6 * max(gradients)), candidate.name


def test_candidates_survive_a_table():
    space = make_space(tiny_t5(), "mixed", keep_inert=True)
    rows = space.table().to_dict("records")
    assert tuple(Candidate.from_row(row) for row in rows) == space.candidates


def test_another_default_device_changes_nothing():
    expected = make_space(tiny_t5(), "mixed").names
    model = tiny_t5()
    with torch.device("meta"):
        there = make_space(T5ForConditionalGeneration(model.config), "mixed")
    model = tiny_t5()
    with torch.device("meta"):
        here = make_space(model, "mixed")
    assert there.names == here.names == expected


def test_rotary_positions_count_on_a_model_without_weights():
    """A bias on keys is inert without them only."""
    expected = make_space(tiny_llama(), "mixed").names
    assert "decoder.0.attn.k:bitfit" in expected
    with torch.device("meta"):
        model = LlamaForCausalLM(tiny_llama().config)
    assert make_space(model, "mixed").names == expected
