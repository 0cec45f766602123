"""The prepare stage: files to tokenised rows, with a receipt. Runs in a child process, before any GPU is taken."""

import json
from collections.abc import Sequence
from pathlib import Path

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.fingerprint import sha256_file, sha256_text
from tuneline.contracts.jobs import Job, ProgressEvent, Reporter
from tuneline.contracts.records import PreparedItem, PreparedRow
from tuneline.contracts.spec import DataSpec
from tuneline.contracts.store import write_whole
from tuneline.data.formats import to_conversations
from tuneline.data.lengths import fit_lengths, summarise
from tuneline.data.receipt import (
    Ledger,
    Receipt,
    RowCounts,
    SourceLine,
    TemplateFacts,
    TokenCounts,
    check_masks,
    show_mask,
)
from tuneline.data.rendering import ChatRenderer, Rendered
from tuneline.data.sources import HUB_PREFIX, SourceRow, read_rows
from tuneline.data.splitting import Split, draw, mix, split_by_group

RENDERED_AT_ONCE = 2_000
"""Rows between two progress events."""
LEAST_STOP_SHARE = 0.99
"""Below this share of rows that end with a stop token the model would learn to run on."""


def prepare(job: Job, report: Reporter) -> PreparedData:
    """Prepare the data of a job.

    Raises:
        UserError: for every fault of the files, rows and template that a user can mend.
    """
    spec, ledger = job.spec.data, Ledger([], [])
    renderer = ChatRenderer(job.inputs["base"], job.spec.model)
    split = _split_rows(spec, ledger)
    rendering = _Rendering(spec, renderer, ledger, report)
    train = rendering.rows(split.train, "train")
    if spec.replay is not None:
        replay = rendering.rows(_read(spec.replay, "data.replay", spec, ledger), "replay")
        mixed = mix(train, replay, spec.replay_share, spec.seed)
        ledger.step(f"mix in {spec.replay_share:.0%} replay", len(train), len(mixed), {})
        train = mixed
    held_out = rendering.rows(split.held_out, "held out")
    retention = rendering.rows(_retention_rows(spec, ledger), "retention")
    receipt = _receipt(train, held_out, retention, renderer, ledger, spec)
    _write(job.out_dir, train, held_out, retention, renderer)
    write_whole(job.out_dir / PreparedData.RECEIPT, receipt.model_dump_json(indent=1))
    return PreparedData(
        train_rows=receipt.rows.train,
        held_out_rows=receipt.rows.held_out,
        retention_rows=receipt.rows.retention,
        train_tokens=receipt.tokens.train,
        learned_tokens=receipt.tokens.learned,
        lengths=receipt.lengths,
        stop_token_ids=renderer.stop_token_ids,
        template_sha256=receipt.template.sha256,
        receipt_sha256=sha256_file(job.out_dir / PreparedData.RECEIPT),
    )


def _read(source: str, key: str, spec: DataSpec, ledger: Ledger) -> list[SourceRow]:
    rows = read_rows(source, key, split=spec.hub_split, revision=spec.hub_revision)
    digest = f"{spec.hub_revision}" if source.startswith(HUB_PREFIX) else sha256_file(Path(source))
    ledger.sources.append(SourceLine(name=key, path=source, sha256=digest, rows_read=len(rows)))
    return rows


def _split_rows(spec: DataSpec, ledger: Ledger) -> Split[SourceRow]:
    train = _read(spec.train, "data.train", spec, ledger)
    if spec.held_out is not None:
        split = Split(train, _read(spec.held_out, "data.held_out", spec, ledger))
    else:
        split = split_by_group(train, lambda row: _group(row, spec), spec.held_out_share, spec.seed)
        ledger.step("split", len(train), len(split.train), {"held out": [row.row_id for row in split.held_out]})
    if not split.train or not split.held_out:
        raise UserError.of(
            f"the split leaves {len(split.train)} rows to train on and {len(split.held_out)} held out",
            "data.held_out_share",
            "give more rows, another share, or a file in data.held_out",
        )
    drawn = draw(split.train, spec.max_train_rows, spec.seed)
    if len(drawn) < len(split.train):
        ledger.step("draw data.max_train_rows", len(split.train), len(drawn), {})
    return Split(drawn, draw(split.held_out, spec.max_held_out_rows, spec.seed))


def _group(row: SourceRow, spec: DataSpec) -> str:
    if spec.held_out_group is None:  # equal rows stay on one side
        return json.dumps(dict(row.values), sort_keys=True, default=str)
    if spec.held_out_group not in row.values:
        raise UserError.of(f"no column `{spec.held_out_group}`", row.row_id, "it is named by data.held_out_group")
    return str(row.values[spec.held_out_group])


def _retention_rows(spec: DataSpec, ledger: Ledger) -> list[SourceRow]:
    if spec.retention is None:
        return []
    return draw(_read(spec.retention, "data.retention", spec, ledger), spec.max_held_out_rows, spec.seed)


class _Rendering:
    """The way from source rows to rendered ones, the same for every data set of a run."""

    def __init__(self, spec: DataSpec, renderer: ChatRenderer, ledger: Ledger, report: Reporter) -> None:
        self._spec, self._renderer, self._ledger, self._report = spec, renderer, ledger, report

    def rows(self, rows: list[SourceRow], name: str) -> list[Rendered]:
        if not rows:
            return []
        conversations = to_conversations(rows, self._spec, rows[0].row_id.rsplit(":", 1)[0])
        rendered: list[Rendered] = []
        for start in range(0, len(conversations), RENDERED_AT_ONCE):
            rendered += self._renderer.render(conversations[start : start + RENDERED_AT_ONCE])
            self._report(ProgressEvent(done=len(rendered), planned=len(rows), unit="rows", note=name))
        fitted = fit_lengths(rendered, self._spec)
        lost = {"too long": fitted.dropped, "cut to the limit (kept)": fitted.cut}
        self._ledger.step(f"render {name}", len(rows), len(fitted.rows), lost)
        return fitted.rows


def _receipt(
    train: Sequence[Rendered],
    held_out: Sequence[Rendered],
    retention: Sequence[Rendered],
    renderer: ChatRenderer,
    ledger: Ledger,
    spec: DataSpec,
) -> Receipt:
    if not train or not held_out:
        fix = "see data.max_length_tokens and data.over_length"
        raise UserError.of("no rows are left after the length limit", "data", fix)
    checks = check_masks(train, held_out, renderer.stop_token_ids)
    if checks.ends_with_stop_share < LEAST_STOP_SHARE and spec.over_length != "truncate_right":
        known = ", ".join(repr(renderer.tokenizer.decode([token])) for token in renderer.stop_token_ids)
        raise UserError.of(
            f"only {checks.ends_with_stop_share:.1%} of the answers end with a stop token (known: {known})",
            "model.base",
            "add the template's end-of-turn token to eos_token_id in generation_config.json: without it the served "
            "model would never stop",
        )
    return Receipt(
        sources=tuple(ledger.sources),
        steps=tuple(ledger.steps),
        rows=RowCounts(train=len(train), held_out=len(held_out), retention=len(retention)),
        tokens=TokenCounts(
            train=sum(len(row.input_ids) for row in train), learned=sum(row.learned_tokens for row in train)
        ),
        lengths=summarise([len(row.input_ids) for row in train]),
        checks=checks,
        samples=show_mask(train, renderer),
        template=TemplateFacts(sha256=sha256_text(renderer.template), text=renderer.template),
        seed=spec.seed,
    )


def _write(
    out_dir: Path,
    train: Sequence[Rendered],
    held_out: Sequence[Rendered],
    retention: Sequence[Rendered],
    renderer: ChatRenderer,
) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = [PreparedRow(row_id=row.row_id, input_ids=row.input_ids, labels=row.labels).model_dump() for row in train]
    datasets.Dataset.from_list(rows).save_to_disk(out_dir / PreparedData.TRAIN)
    for name, items in ((PreparedData.HELD_OUT, held_out), (PreparedData.RETENTION, retention)):
        if items:
            datasets.Dataset.from_list([_item(row).model_dump() for row in items]).save_to_disk(out_dir / name)
    renderer.save(out_dir / PreparedData.TOKENIZER)


def _item(row: Rendered) -> PreparedItem:
    *asked, answer = row.messages
    return PreparedItem(
        row_id=row.row_id,
        input_ids=row.input_ids,
        labels=row.labels,
        messages=json.dumps([message.model_dump() for message in asked], ensure_ascii=False),
        answer=answer.content,
        prompt_ids=row.prompt_ids,
        answer_ids=row.answer_ids,
    )
