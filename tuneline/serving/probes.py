"""The questions that evaluation leaves for the server, with the merged model's own answers."""

from pathlib import Path

from pydantic import ValidationError

from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.records import Probe


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
