from pathlib import Path

import pytest

from tuneline.contracts.adapter_spec import AdapterSpec
from tuneline.contracts.fingerprint import canonical_json, code_version, fingerprint


def test_equal_requests_have_equal_fingerprints_whatever_the_order_of_keys() -> None:
    one = fingerprint("train", {"a": 1, "b": [2.5, None]}, ["x"], [], ["pydantic"])
    other = fingerprint("train", {"b": [2.5, None], "a": 1}, ["x"], [], ["pydantic"])
    assert one == other
    assert len(one) == 16


@pytest.mark.parametrize(
    ("stage", "section", "inputs", "libraries"),
    [
        ("merge", {"a": 1}, ["x"], ["pydantic"]),
        ("train", {"a": 2}, ["x"], ["pydantic"]),
        ("train", {"a": 1.0}, ["x"], ["pydantic"]),
        ("train", {"a": 1}, ["y"], ["pydantic"]),
        ("train", {"a": 1}, ["x", "x"], ["pydantic"]),
        ("train", {"a": 1}, ["x"], ["pyyaml"]),
    ],
)
def test_every_part_of_a_request_changes_the_fingerprint(
    stage: str, section: object, inputs: list[str], libraries: list[str]
) -> None:
    assert fingerprint("train", {"a": 1}, ["x"], [], ["pydantic"]) != fingerprint(stage, section, inputs, [], libraries)


def test_a_section_of_the_config_is_written_by_its_fields() -> None:
    assert '"rank":16' in canonical_json(AdapterSpec())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": {1, 2}}, "value.a is a set"),
        ([Path("x")], r"value\[0\] is a PosixPath"),
        ({"lr": float("nan")}, "value.lr is nan"),
        ({1: "x"}, "keys that are not text"),
    ],
)
def test_a_value_without_one_way_of_being_written_is_an_error_that_says_where(value: object, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        canonical_json(value)


def test_comments_do_not_change_a_code_version_and_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "pkg" / "part.py"
    module.parent.mkdir()
    monkeypatch.setattr("tuneline.contracts.fingerprint.__file__", str(tmp_path / "a" / "b" / "c.py"))
    versions = []
    for source in ("x = 1\n", "x = 1  # one\n\n", "x = 2\n"):
        module.write_text(source)
        code_version.cache_clear()
        versions.append(code_version("pkg"))
    code_version.cache_clear()
    assert versions[0] == versions[1] != versions[2]
