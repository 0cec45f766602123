"""What each model answered on each item: a line of `items.jsonl`, and the only thing that gate and report read."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tuneline.contracts.artifacts import Record
from tuneline.contracts.fingerprint import sha256_text

TARGET: Final = "target"
"""Suite of what is being taught: the held-out rows."""
RETENTION: Final = "retention"
"""Suite of what the base could already do and must not forget."""
BASE: Final = "base"
CANDIDATE: Final = "candidate"
CHAMPION: Final = "champion"


class ItemResult(Record):
    """One model on one item of one suite; models are paired on `(suite, row_id)`."""

    suite: str
    row_id: str
    prompt_sha256: str
    """Hash of the prompt's token ids: equal for every model, or the models were not asked the same thing."""
    model: str
    answer: str | None
    """Generated text without its stop token; absent when only losses are measured."""
    expected: str
    metrics: dict[str, float]
    """0 or 1 under each name of `evaluation.metrics`, unless only losses are measured; for a pair also under
    `preference_accuracy`: whether the better answer is the more probable one."""
    stopped: bool | None
    """Whether a stop token ended the answer within `max_new_tokens`; absent when only losses are measured."""
    new_tokens: int
    """Generated tokens, the stop token included."""
    nll: float
    """Negative log-likelihood of the expected answer, summed over its tokens, in nats."""
    answer_tokens: int
    """Tokens of the expected answer that `nll` sums over."""


def prompt_sha256(prompt_ids: Sequence[int]) -> str:
    """Hash the token ids of a prompt."""
    return sha256_text(",".join(map(str, prompt_ids)))


def write_items(path: Path, results: Iterable[ItemResult]) -> None:
    """Write one line per result."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(result.model_dump_json() + "\n" for result in results)


def read_items(path: Path) -> list[ItemResult]:
    """Read the results that `write_items` wrote, in its order."""
    with path.open(encoding="utf-8") as stream:
        return [ItemResult.model_validate_json(line) for line in stream]
