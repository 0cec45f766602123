from pathlib import Path

import pytest
from pydantic import ValidationError

from tuneline.contracts.adapter_spec import AdapterSpec
from tuneline.contracts.errors import UserError
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.spec_loading import load_spec


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "full", "rank": 8, "dora": True}, "has no adapter: leave out rank, dora"),
        ({"method": "full", "target_modules": ["q_proj"]}, "leave out target_modules"),
        ({"method": "qlora", "initialisation": "pissa"}, "pissa takes a 16-bit base apart"),
        ({"target_parameters": ["mlp.experts.down_proj"], "dora": True}, "dora does not work on fused weights"),
        ({"target_parameters": ["mlp.experts.down_proj"], "dropout": 0.1}, "dropout does not work on fused weights"),
        ({"target_parameters": ["x"], "initialisation": "pissa"}, "initialisation pissa does not work on fused"),
        ({"target_modules": []}, "there is nothing to adapt"),
        ({"target_modules": "re:.*(q_proj"}, r"re:\.\*\(q_proj is no regular expression: missing \)"),
        ({"alpha": 10_000}, r"multiplies the update by 625 \(alpha / rank\).*set alpha to 16 to 32"),
        ({"alpha": 10_000, "rslora": True}, r"by 2\.5e\+03 \(alpha / sqrt\(rank\)\).*set alpha to 4 to 8"),
        ({"alpha": 0.001}, "multiplies the update by 6.25e-05"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"lora_plus_ratio": 0.5}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdapterSpec.model_validate(keys)


def test_conflicts_are_told_together() -> None:
    with pytest.raises(ValidationError) as error:
        AdapterSpec.model_validate({"method": "qlora", "initialisation": "pissa", "alpha": 1e6, "target_modules": []})
    assert all(part in str(error.value) for part in ("pissa takes", "multiplies the update", "nothing to adapt"))


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "full"},
        {"method": "qlora", "dora": True, "rslora": True, "lora_plus_ratio": 16},
        {"initialisation": "pissa", "dora": True, "dropout": 0.05},
        {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"], "rslora": True},
        {"rank": 512, "alpha": 1024, "rslora": True},
    ],
)
def test_what_can_work_is_read_and_survives_the_way_to_a_stage(keys: dict[str, object]) -> None:
    spec = AdapterSpec.model_validate(keys)
    assert AdapterSpec.model_validate_json(spec.model_dump_json()) == spec


def test_only_what_vllm_cannot_read_needs_a_merge() -> None:
    assert AdapterSpec(rslora=True, lora_plus_ratio=16).why_merged == ()
    assert AdapterSpec(dora=True).why_merged == ("vLLM refuses DoRA",)
    assert len(AdapterSpec(method="qlora", dora=True).why_merged) == 2
    assert "PiSSA" in AdapterSpec(initialisation="pissa").why_merged[0]
    assert "fused experts" in AdapterSpec(target_parameters=("x",)).why_merged[0]


def _problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text("name: demo\nmodel:\n  base: some/base\ndata:\n  train: rows.csv\n" + text)
    with pytest.raises(UserError) as caught:
        load_spec(path)
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


def test_an_error_names_the_line_of_the_section(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path, "adapter:\n  method: full\n  rank: 8\n")
    assert problem.startswith("6: `adapter`: method full trains every weight and has no adapter: leave out rank")


def test_a_learning_rate_of_10_is_told_its_limit_and_what_is_usual(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path, "training:\n  learning_rate: 10\n")
    assert problem.startswith("7: `training.learning_rate` is 10: input should be less than or equal to 0.1")
    assert "2e-4 is usual for an adapter" in problem


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"lora_plus_ratio": 16}, "training": {"learning_rate": 0.01}}, "learning rate 0.16, above 0.1"),
        ({"adapter": {"initialisation": "pissa"}, "training": {"weight_decay": 0.01}}, "pull PiSSA's factors"),
    ],
)
def test_settings_of_two_sections_that_do_not_go_together_are_refused(
    sections: dict[str, dict[str, object]], message: str
) -> None:
    document = {"name": "demo", "model": {"base": "b"}, "data": {"train": "t"}, **sections}
    with pytest.raises(ValidationError, match=message):
        RunSpec.model_validate(document)
