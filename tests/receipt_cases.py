"""A receipt as a support team's run would leave it: two sources, replay, a split, some dirt, every kind of check."""

from typing import Any

from tuneline.contracts.artifacts import LengthSummary
from tuneline.contracts.receipt import (
    LeakLine,
    LengthBin,
    LengthLimit,
    MaskChecks,
    PackingLine,
    Piece,
    Reason,
    Receipt,
    RowCounts,
    Sample,
    SourceLine,
    StepLine,
    TemplateFacts,
    TokenCounts,
)

LONG_CONTEXT = "".join(f"Line {line}: the parcel was seen in depot {line % 7}.\n" for line in range(60))
"""2,450 characters that are only read: a lens must shorten them."""
TEMPLATE = """{%- for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{%- endfor %}
"""


def row_ids(file: str, count: int, step: int = 37) -> tuple[str, ...]:
    """Name the first rows of a reason."""
    return tuple(f"{file}:{1 + step * number}" for number in range(min(count, 20)))


def reason(name: str, rows: int, file: str = "data/train-1.jsonl", step: int = 37) -> Reason:
    """Rows that share a fate."""
    return Reason(reason=name, rows=rows, examples=row_ids(file, rows, step))


def step(
    data_set: str, name: str, rows_in: int, rows_out: int, tokens_out: int, estimated: bool = True, **lists: Any
) -> StepLine:
    """A step of a data set."""
    return StepLine(
        data_set=data_set,
        step=name,
        rows_in=rows_in,
        rows_out=rows_out,
        tokens_out=tokens_out,
        tokens_estimated=estimated,
        **lists,
    )


SOURCES = (
    SourceLine(
        data_set="train",
        path="data/train-*.jsonl",
        files=3,
        identity="0d3f" * 16,
        rows_read=11_240,
        formats={"messages": 9_112, "prompt_completion": 2_120},
    ),
    SourceLine(
        data_set="train",
        path="s3://support-exports/2026/tickets.csv.gz",
        files=1,
        identity="etag:9a1b",
        rows_read=2_100,
        formats={"prompt_completion": 2_096},
    ),
    SourceLine(
        data_set="replay",
        path="hub:owner/general-chat@4f2c9d1#train",
        files=2,
        identity="4f2c9d1",
        rows_read=5_000,
        formats={"sharegpt": 5_000},
    ),
    SourceLine(
        data_set="retention",
        path="data/retention.parquet",
        files=1,
        identity="77ab" * 16,
        rows_read=400,
        formats={"alpaca": 400},
    ),
)
STEPS = (
    step(
        "train",
        "read",
        13_340,
        13_328,
        2_531_002,
        dropped=(
            Reason(
                reason="cannot be read as an example",
                rows=12,
                examples=(
                    "data/train-2.jsonl:41 (not JSON: unexpected end of the line)",
                    "s3://support-exports/2026/tickets.csv.gz:77 (no completion)",
                    *row_ids("data/train-3.jsonl", 10),
                ),
            ),
        ),
    ),
    step(
        "train",
        "clean",
        13_328,
        13_301,
        2_529_118,
        dropped=(reason("empty answer", 25), reason("matches drop_pattern", 2)),
        noted=(reason("e-mail address", 14), reason("card number", 2)),
    ),
    step(
        "train",
        "duplicates",
        13_301,
        12_980,
        2_468_009,
        dropped=(reason("repeats an earlier row", 321),),
        noted=(reason("same prompt, other answer", 18),),
    ),
    step(
        "train", "near-duplicates", 12_980, 12_731, 2_419_377, dropped=(reason("nearly repeats an earlier row", 249),)
    ),
    step("train", "split", 12_731, 11_458, 2_177_300, dropped=(reason("held out", 1_273),)),
    step("train", "leaks", 11_458, 11_449, 2_175_512, dropped=(reason("stands in retention", 9),)),
    step(
        "train",
        "render",
        11_449,
        11_441,
        2_174_918,
        estimated=False,
        dropped=(reason("longer than 1,024 tokens", 6), reason("nothing to learn", 2)),
        noted=(reason("the template leaves out some content", 4),),
    ),
    step("replay", "read", 5_000, 5_000, 1_120_000),
    step("replay", "draw", 5_000, 1_204, 270_114, dropped=(reason("not drawn", 3_796, "general-chat"),)),
    step("replay", "render", 1_204, 1_204, 270_082, estimated=False),
    step("held_out", "split", 1_273, 1_273, 241_001),
    step("held_out", "draw", 1_273, 1_000, 189_540, dropped=(reason("not drawn", 273),)),
    step("held_out", "render", 1_000, 998, 188_202, estimated=False, dropped=(reason("longer than 1,024 tokens", 2),)),
    step("retention", "read", 400, 400, 80_100),
    step("retention", "render", 400, 400, 80_044, estimated=False),
)
BIN_ROWS = (212, 1_630, 2_904, 2_760, 1_981, 1_244, 803, 480, 281, 160, 88, 49, 27, 14, 8, 4)
SAMPLES = (
    Sample(
        row_id="data/train-1.jsonl:17",
        pieces=(
            Piece(
                text="<|im_start|>system\nYou answer customers of a parcel service.<|im_end|>\n"
                "<|im_start|>user\nWhere is my parcel? It was due\ton Monday.<|im_end|>\n<|im_start|>assistant\n",
                learned=False,
            ),
            Piece(text="I am sorry for the wait.\nYour parcel is in the depot: it comes tomorrow.", learned=True),
            Piece(text="<|im_end|>", learned=True, stop=True),
            Piece(text="\n", learned=False),
        ),
    ),
    Sample(
        row_id="data/train-2.jsonl:8",
        pieces=(
            Piece(
                text=f"<|im_start|>user\n{LONG_CONTEXT}Which depot?<|im_end|>\n<|im_start|>assistant\n", learned=False
            ),
            Piece(text="Depot 3.", learned=True),
            Piece(text="<|im_end|>", learned=True, stop=True),
            Piece(
                text="\n<|im_start|>user\nThanks \u202eevil\x1b[31m<|im_end|>\n<|im_start|>assistant\n", learned=False
            ),
            Piece(text="You are welcome.", learned=True),
            Piece(text="<|im_end|>", learned=True, stop=True),
        ),
    ),
    Sample(
        row_id="general-chat:4021",
        pieces=(
            Piece(text="<|im_start|>user\nName a prime.<|im_end|>\n<|im_start|>assistant\n", learned=False),
            Piece(text="17", learned=True),
        ),
    ),
)
RECEIPT = Receipt(
    kind="conversation",
    sources=SOURCES,
    steps=STEPS,
    rows=RowCounts(train=12_645, held_out=998, retention=400),
    tokens=TokenCounts(
        train=2_445_000,
        learned=513_450,
        by_role={"system": 403_220, "user": 1_303_180, "assistant": 726_100, "tool": 12_500},
        learned_by_role={"system": 0, "user": 0, "assistant": 513_450, "tool": 0},
    ),
    lengths=LengthSummary(p50=171, p90=371, p95=460, p99=655, max=1_019),
    length_histogram=tuple(
        LengthBin(from_tokens=1 + 64 * place, to_tokens=64 * (place + 1), rows=rows)
        for place, rows in enumerate(BIN_ROWS)
    ),
    length_limits=tuple(
        LengthLimit(
            limit_tokens=limit,
            rows_over=rows,
            learned_share_lost_by_drop=by_drop,
            learned_share_lost_by_truncate_right=by_cut,
        )
        for limit, rows, by_drop, by_cut in (
            (171, 6_322, 0.6612, 0.4205),
            (371, 1_264, 0.2103, 0.0871),
            (460, 632, 0.1240, 0.0409),
            (655, 126, 0.0312, 0.0077),
            (1_024, 6, 0.0021, 0.0003),
        )
    ),
    checks=MaskChecks(
        ends_with_stop_share=0.9987,
        learned_share=0.21,
        nothing_to_learn_rows=2,
        two_bos_rows=0,
        merged_border_rows=31,
        altered_rows=4,
        unrolled_rows=0,
    ),
    leaks=(
        LeakLine(
            data_set="held_out",
            exact_prompts=reason("same prompt", 0),
            ngrams=reason("13 words in a row", 41, "data/train-3.jsonl"),
            similar=reason("near-duplicate", 17),
            items=1_000,
            items_touched=22,
            ngrams_left_out=12,
        ),
        LeakLine(
            data_set="retention",
            exact_prompts=reason("same prompt", 9),
            ngrams=reason("13 words in a row", 0),
            similar=reason("near-duplicate", 0),
            items=400,
            items_touched=7,
        ),
    ),
    packing=PackingLine(
        packs=2_431,
        capacity_tokens=1_019,
        total_efficiency=2_445_000 / (2_431 * 1_019),
        learned_efficiency=513_450 / (2_431 * 1_019),
        unpacked_efficiency=2_445_000 / (12_645 * 1_019),
    ),
    samples=SAMPLES,
    template=TemplateFacts(sha256="bb22" * 16, text=TEMPLATE, prefix_stable=True),
    seed=17,
)
assert sum(BIN_ROWS) == RECEIPT.rows.train
