"""Probes are read as evaluation writes them; what is wrong is named by line."""

import json
from pathlib import Path

import pytest

from tuneline.contracts.errors import UserError
from tuneline.serving.probes import read_probes


def line(**changes: object) -> str:
    probe = {
        "id": "rows.jsonl:1",
        "messages": [{"role": "user", "content": "hi"}],
        "prompt_ids": [1, 2],
        "answer_ids": [3, 4],
        "answer_logprobs": [-0.5, -0.25],
    }
    return json.dumps(probe | changes) + "\n"


def test_the_first_probes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_text(line() + line(id="b") + line(id="c"), encoding="utf-8")
    assert [probe.id for probe in read_probes(file, 2)] == ["rows.jsonl:1", "b"]


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_text(line() + line(answer_logprobs=[-0.5]) + line(prompt_ids="x"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_probes(file, 8)
    assert [problem.where for problem in caught.value.problems] == [f"{file}:2", f"{file}:3"]
    assert "2 answer ids but 1 log-probabilities" in caught.value.problems[0].what


def test_a_file_without_probes_is_no_proof(tmp_path: Path) -> None:
    (tmp_path / "probes.jsonl").touch()
    with pytest.raises(UserError, match="no probes"):
        read_probes(tmp_path / "probes.jsonl", 8)
