import json
from pathlib import Path

import pytest

from tuneline.contracts.errors import ExitCode, UserError
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.spec_loading import all_keys, load_spec

MINIMAL = "name: demo\nmodel:\n  base: some/base\ndata:\n  train: rows.csv\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_spec(path, overrides)
    assert caught.value.exit_code == ExitCode.WRONG_INPUT
    return [str(problem) for problem in caught.value.problems]


def test_three_lines_are_a_config_and_the_rest_are_defaults(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, MINIMAL))
    assert (spec.model_name, spec.adapter.method, spec.adapter.rank, spec.gate.confidence) == ("demo", "lora", 16, 0.95)


def test_an_unknown_key_is_named_with_file_line_and_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "training:\n  epochs: 1\n  learing_rate: 5.0e-4\n")
    assert problems(path) == [
        f"{path}:8: unknown key `training.learing_rate`\n    did you mean `training.learning_rate`?"
    ]


def test_a_key_in_the_wrong_section_is_told_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "learning_rate: 1.0e-3\n")
    assert problems(path) == [f"{path}:6: unknown key `learning_rate`\n    did you mean `training.learning_rate`?"]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    text = "name: Bad Name\nmodel: {}\ndata:\n  train: a.csv\n  train: b.csv\nadapter:\n  rank: many\n  method: dora\n"
    found = problems(write(tmp_path, text), "training.epochs=0", "nonsense")
    for part in ("`name` is 'Bad Name'", "`model.base` is missing", "`data.train` is written twice",
                 "`adapter.rank` is 'many'", "`adapter.method` is 'dora'", "--set training.epochs=0",
                 "--set nonsense"):  # fmt: skip
        assert sum(part in problem for problem in found) == 1, part
    assert len(found) == 7


def test_overrides_go_through_the_same_validation(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    spec = load_spec(path, ["training.epochs=2.5", "adapter.target_modules=[q_proj, v_proj]", "name=other"])
    assert (spec.training.epochs, spec.adapter.target_modules, spec.name) == (2.5, ("q_proj", "v_proj"), "other")
    assert problems(path, "training.epoch=2") == [
        "--set training.epoch=2: unknown key `training.epoch`\n    did you mean `training.epochs`?"
    ]


def test_sections_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "evaluation:\n  generate: false\n")
    assert problems(path) == [f"{path}: evaluation.generate is false, so gate.metric must be held_out_loss"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file holds no sections"),
        (b"- a\n- b\n", "the file holds no sections"),
        (b"name: [\n", "not YAML"),
        (b"name: \xff\xfe\n", "byte 6 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_config_is_said_to_be_none(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert what in problems(path)[0]


def test_a_missing_file_names_the_folder_it_was_looked_for_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(Path("absent.yaml")) == [f"absent.yaml: no such file\n    looked from {tmp_path}"]


def test_there_are_at_most_a_hundred_settings_and_each_is_documented() -> None:
    keys = all_keys()
    assert len(keys) <= 100
    definitions = RunSpec.model_json_schema()["$defs"]
    undocumented = [
        f"{section}.{name}"
        for section, definition in definitions.items()
        for name, field in definition["properties"].items()
        if not field.get("description")
    ]
    assert undocumented == []


def test_the_schema_is_json_and_closed() -> None:
    schema = json.loads(json.dumps(RunSpec.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert all(definition["additionalProperties"] is False for definition in schema["$defs"].values())
