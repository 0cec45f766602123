import pytest

from tuneline.contracts.adapter_spec import AdapterSpec
from tuneline.contracts.targets import Adaptable, adapts_module, adapts_parameter, target_problems

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE = Adaptable(
    linears=tuple(
        f"model.layers.{layer}.{path}"
        for layer in range(4)
        for path in (*(f"self_attn.{name}" for name in ATTENTION), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ),
    outside=("lm_head", "model.embed_tokens"),
)
MIXTURE = Adaptable(
    linears=tuple(f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ATTENTION),
    outside=("lm_head", "model.embed_tokens"),
    fused=tuple(f"model.layers.{n}.mlp.experts.{name}" for n in range(2) for name in ("gate_up_proj", "down_proj")),
)
BOTH = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def told(model: Adaptable, **adapter: object) -> list[str]:
    return [str(problem) for problem in target_problems(AdapterSpec.model_validate(adapter), model)]


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 28),
        (["q_proj", "v_proj"], 8),
        (["mlp.up_proj"], 4),
        (["model.layers.0.self_attn.q_proj"], 1),
        (r"re:.*\.layers\.[0-2]\.self_attn\.q_proj", 3),
        (r"re:.*\.(q|v)_proj", 8),
        ("up_proj", 4),
    ],
)
def test_targets_by_name_path_pattern_or_all(targets: str | list[str], count: int) -> None:
    spec = AdapterSpec.model_validate({"target_modules": targets})
    assert sum(adapts_module(spec, path) for path in DENSE.linears) == count
    assert target_problems(spec, DENSE) == []


def test_a_name_is_whole_parts_of_a_path() -> None:
    assert not adapts_module(AdapterSpec(target_modules=("proj",)), "model.layers.0.self_attn.q_proj")


def test_a_pattern_is_held_against_the_whole_name() -> None:
    assert not adapts_module(AdapterSpec(target_modules="re:q_proj"), "model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_prj"], "adapter.target_modules: `v_prj` matches no linear module\n    did you mean `v_proj`?"),
        (["lm_head"], "`lm_head` cannot be adapted"),
        (["embed_tokens"], "`embed_tokens` cannot be adapted"),
        ("re:.*", "`re:.*` cannot be adapted"),
        (r"re:.*\.qproj", "matches no linear module\n    did you mean `q_proj`? the model has q_proj, k_proj"),
        ("re:q_proj", "matches no linear module\n    it must match the whole name, as `re:.*q_proj`"),
        (r"re:.*\.(q_proj|vproj)", "the alternative `vproj` matches no linear module\n    did you mean `v_proj`?"),
        (r"re:.*\.q_proj|.*\.vproj", r"the alternative `.*\.vproj` matches no linear module"),
    ],
)
def test_a_target_that_adapts_nothing_is_named_with_the_nearest(targets: str | list[str], message: str) -> None:
    (problem,) = told(DENSE, target_modules=targets)
    assert message in problem


def test_every_wrong_target_is_told_at_once() -> None:
    found = told(DENSE, target_modules=["q_prj", "lm_head"], target_parameters=["mlp.experts.down_proj"])
    assert len(found) == 3
    assert "the model has no fused experts" in found[2]


def test_experts_that_all_linear_passes_by_are_a_failure_until_they_are_named() -> None:
    found = told(MIXTURE, target_modules="all-linear")
    assert len(found) == 2
    assert "mlp.experts.gate_up_proj fuses a mixture's experts" in found[0]
    assert "add mlp.experts.gate_up_proj to adapter.target_parameters" in found[0]
    assert told(MIXTURE, target_modules="all-linear", target_parameters=BOTH) == []
    assert "down_proj" in told(MIXTURE, target_modules="all-linear", target_parameters=BOTH[:1])[0]


def test_attention_alone_passes_by_no_experts_that_were_meant() -> None:
    assert told(MIXTURE, target_modules=["q_proj", "o_proj"]) == []
    assert told(MIXTURE, target_modules=[], target_parameters=BOTH) == []


def test_a_dense_layers_name_that_experts_have_too_reaches_only_the_dense_layer() -> None:
    shared = Adaptable((*MIXTURE.linears, "model.layers.0.mlp.shared_expert.down_proj"), MIXTURE.outside, MIXTURE.fused)
    (problem,) = told(shared, target_modules=["down_proj"])
    assert "mlp.experts.down_proj fuses" in problem


def test_an_experts_matrix_by_its_name_in_the_files_is_told_where_it_went() -> None:
    problems = told(MIXTURE, target_modules=["q_proj", "up_proj"])
    assert "the experts are fused: add mlp.experts.gate_up_proj to adapter.target_parameters" in problems[0]


def test_a_misspelt_fused_weight_is_told_the_nearest() -> None:
    (problem,) = told(MIXTURE, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up"])
    assert "`mlp.experts.gate_up` matches no fused weight\n    did you mean `mlp.experts.gate_up_proj`?" in problem


def test_fused_weights_are_matched_by_whole_parts() -> None:
    spec = AdapterSpec(target_parameters=("experts.down_proj",))
    assert adapts_parameter(spec, "model.layers.0.mlp.experts.down_proj")
    assert not adapts_parameter(spec, "model.layers.0.mlp.experts.gate_up_proj")
