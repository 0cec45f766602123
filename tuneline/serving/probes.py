"""The questions that evaluation leaves for the server, with the merged model's own answers."""

from pathlib import Path
from typing import Self

from pydantic import ValidationError, model_validator

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.records import Message


class Probe(Record):
    """A held-out conversation, how training renders it, and what the merged model answered greedily."""

    id: str
    messages: tuple[Message, ...]
    prompt_ids: list[int]
    """Token ids of the messages under the chat template, generation prompt added."""
    answer_ids: list[int]
    """Token ids of the answer, the end of turn included when the model generated it."""
    answer_logprobs: list[float]
    """Log-probability of each answer token, in nats."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.answer_ids) != len(self.answer_logprobs):
            raise ValueError(f"{len(self.answer_ids)} answer ids but {len(self.answer_logprobs)} log-probabilities")
        return self


def read_probes(path: Path, count: int) -> list[Probe]:
    """Read the first `count` probes of a JSONL file.

    Raises:
        UserError: the file is empty, or lines of it are no probes; names every such line.
    """
    probes: list[Probe] = []
    problems: list[Problem] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if number > count:
                break
            try:
                probes.append(Probe.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                problems.append(Problem(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", f"{path}:{number}"))
    if not probes and not problems:
        problems.append(Problem("no probes", str(path), "evaluate with generation, so that answers can be compared"))
    if problems:
        raise UserError(problems)
    return probes
