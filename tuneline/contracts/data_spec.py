"""The data section: where rows come from, how they are read, and what is kept of them."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tuneline.contracts.section import Section, Share


class CleaningSpec(Section):
    """Which training rows are left out, or changed, before anything is split or tokenised."""

    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that repeat an earlier one word for word."""
    near_duplicates: Literal["off", "report", "drop"] = "off"
    """Rows that nearly repeat an earlier one (MinHash over word 3-grams)."""
    similarity: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    """Jaccard similarity from which two rows are near-duplicates; leaks are looked for with it too."""
    conflicts: Literal["keep", "drop", "fail"] = "keep"
    """Rows with the same prompt and different answers; `drop` keeps the first of them."""
    empty_answers: Literal["drop", "fail"] = "drop"
    """Rows whose answer is empty or white space."""
    languages: tuple[str, ...] = ()
    """Keep rows in these languages only (ISO 639-1, as `[en, de]`); all when empty."""
    keep_pattern: str | None = None
    """Keep only rows in whose text this regular expression is found."""
    drop_pattern: str | None = None
    """Drop rows in whose text this regular expression is found."""
    secrets: Literal["off", "report", "redact", "fail"] = "report"
    """Keys, tokens and private keys in a row's text."""
    personal_data: Literal["off", "report", "redact", "fail"] = "report"
    """E-mail addresses, phone numbers and card numbers (with a right check digit) in a row's text."""


class DataLimitsSpec(Section):
    """Shares of the rows or tokens beyond which prepare refuses to go on."""

    max_bad_rows_share: Share = 0.01
    """Rows of a source that cannot be read as an example; fewer are dropped and named."""
    max_lost_learned_share: Share = 0.01
    """Learned tokens that `over_length: error` may cost; rows with fewer are dropped and named."""
    min_stop_share: Share = 0.99
    """Training rows whose last learned token is a stop token that the generation config knows."""
    max_nothing_to_learn_share: Share = 0.01
    """Training rows without a learned token; fewer are dropped and named."""
    max_altered_share: Share = 0.01
    """Rows of which the chat template leaves out or changes some content; fewer are kept and named."""


ColumnRole = Literal["prompt", "completion", "system", "messages", "tools", "text", "chosen", "rejected", "label"]


class DataSpec(Section):
    """Rows in, and what is kept of them.

    A source is a file, a glob, a folder, a URL (`https://`, `s3://`, `gs://`), or a Hub dataset as
    `hub:owner/name@revision#split`. Files are .csv, .tsv, .json, .jsonl, .parquet or .arrow, also as .gz or .zst.
    """

    train: str | dict[str, Annotated[float, Field(gt=0)]]
    """Source of the training rows, or several with their weights in the mix (`{a.jsonl: 3, b.jsonl: 1}`)."""
    held_out: str | None = None
    """Source of the rows kept for evaluation; when absent, `held_out_share` of `train` is split off."""
    held_out_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of `train` that is held out when `held_out` is absent."""
    held_out_group: str | None = None
    """Column whose values stay together when splitting, so that no group is on both sides."""
    held_out_time: str | None = None
    """Column with a date or number: the newest rows are held out instead of random ones."""
    format: Literal[
        "auto",
        "prompt_completion",
        "alpaca",
        "sharegpt",
        "messages",
        "text",
        "preference",
        "unpaired_preference",
    ] = "auto"
    """Shape of a row; `auto` tells it from the columns, and the receipt says what was found."""
    columns: dict[ColumnRole, str] = Field(default_factory=dict)
    """Names of columns that differ from the format's own, as `{prompt: question, completion: answer}`."""
    system_prompt: str | None = None
    """System message put before every conversation that has none."""
    prompt_template: str = "{prompt}"
    """User message of `prompt_completion` rows; `{name}` is replaced by the text of that column."""
    learn: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Turns that are learned; a message's own `weight` (0 or 1) goes before."""
    replay: str | None = None
    """Rows of what the base can already do, mixed into training so that it is not forgotten."""
    replay_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training rows that come from `replay`."""
    retention: str | None = None
    """Held-out rows of what the base can already do; the gate demands that they still hold."""
    max_length_tokens: Annotated[int, Field(ge=8)] = 1024
    """Longest example, in tokens after the chat template."""
    over_length: Literal["error", "drop", "truncate_left", "truncate_right", "split"] = "error"
    """What happens to a longer one; `error` drops while that costs next to nothing, and else refuses."""
    max_train_rows: Annotated[int, Field(ge=1)] | None = None
    """Use at most this many training rows, drawn with the seed."""
    max_held_out_rows: Annotated[int, Field(ge=1)] | None = None
    """Use at most this many held-out rows (and retention rows), drawn with the seed."""
    leaks: Literal["report", "drop_from_train", "fail"] = "report"
    """Training rows that stand in the held-out or retention rows too, wholly or in part."""
    cleaning: CleaningSpec = CleaningSpec()
    """Which training rows are left out, or changed."""
    limits: DataLimitsSpec = DataLimitsSpec()
    """When prepare refuses to go on."""
    seed: int = 17
    """Seed of the split, the draw and the mix."""

    @property
    def train_sources(self) -> dict[str, float | None]:
        """Sources of the training rows with their weights; a single source has none."""
        return {self.train: None} if isinstance(self.train, str) else dict(self.train)

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        if self.train == {}:
            raise ValueError("train names no source")
        if "{" not in self.prompt_template:
            raise ValueError("prompt_template must name a column, as {prompt}")
        if (self.replay is None) != (self.replay_share == 0.0):
            raise ValueError("replay and replay_share go together: set both or neither")
        if self.held_out_group is not None and self.held_out_time is not None:
            raise ValueError("held_out_group and held_out_time are two ways to split: set one")
        for name in ("keep_pattern", "drop_pattern"):
            _check_pattern(name, getattr(self.cleaning, name))
        return self


def _check_pattern(name: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"cleaning.{name} is no regular expression: {error}") from None
