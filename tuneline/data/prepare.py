"""The prepare stage: sources to tokenised rows, with a receipt. Runs in a child process, before any GPU is taken.

    read        every source, as examples with keys           reading.py, converting.py
    select      repeats, conflicts, mix, split, leaks, draws  choosing.py, selecting.py, leaks.py
    render      template, tokens, masks, lengths              render_chunk.py, rendering_pass.py, checks.py
    account     packs and receipt                             packing.py, receipt.py

Rows pass through worker processes in chunks and lie on disk in between.
"""

import os
import shutil
from dataclasses import replace
from typing import Final

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.fingerprint import sha256_file
from tuneline.contracts.hashing import HashCache
from tuneline.contracts.jobs import Job, Reporter
from tuneline.contracts.receipt import Receipt
from tuneline.contracts.settings import Settings
from tuneline.contracts.store import write_whole
from tuneline.data.checks import check_evaluation, check_training
from tuneline.data.choosing import choose
from tuneline.data.ledger import Ledger
from tuneline.data.packing import pack
from tuneline.data.prepared_rows import write_packs
from tuneline.data.receipt import make_receipt
from tuneline.data.render_chunk import Facts, Rendering
from tuneline.data.rendering_pass import RenderedSet, render_set
from tuneline.data.stage import Stage
from tuneline.data.tokenizer import ChatTokenizer
from tuneline.data.workers import Workers

WORK = "work"
"""Folder for what is not kept."""
MOST_WORKERS = 16
"""One process reads the sources, and keeps about so many others busy."""
FILES: Final = {"held_out": PreparedData.HELD_OUT, "retention": PreparedData.RETENTION}


def prepare(job: Job, report: Reporter) -> PreparedData:
    """Prepare the data of a job.

    Raises:
        UserError: for every fault of the sources, rows and template that a user can mend.
    """
    tokenizer = _rendering(job).renderer.tokenizer  # before the workers fork: they inherit it
    work = job.out_dir / WORK
    work.mkdir()
    with Ledger(job.out_dir / PreparedData.DROPPED) as ledger, Workers(worker_count()) as workers:
        receipt, facts = _prepare(job, Stage(job.spec.data, ledger, workers, report, work), tokenizer)
    shutil.rmtree(work)
    tokenizer.save(job.out_dir / PreparedData.TOKENIZER)
    write_whole(job.out_dir / PreparedData.RECEIPT, receipt.model_dump_json(indent=1))
    return PreparedData(
        kind=receipt.kind,
        train_rows=receipt.rows.train,
        held_out_rows=receipt.rows.held_out,
        retention_rows=receipt.rows.retention,
        train_tokens=receipt.tokens.train,
        learned_tokens=receipt.tokens.learned,
        rejected_tokens=facts.rejected_tokens,
        longest_rejected_tokens=facts.longest_rejected_tokens,
        desirable_rows=facts.desirable,
        packs=receipt.packing.packs,
        lengths=receipt.lengths,
        stop_token_ids=tokenizer.stop_token_ids,
        template_sha256=receipt.template.sha256,
        receipt_sha256=sha256_file(job.out_dir / PreparedData.RECEIPT),
    )


def _prepare(job: Job, stage: Stage, tokenizer: ChatTokenizer) -> tuple[Receipt, Facts]:
    spec, rendering = job.spec.data, _rendering(job)
    chosen = choose(stage, HashCache(Settings.from_environment().home / "hashes.json"))
    train = render_set(stage, rendering, chosen.training, job.out_dir / PreparedData.TRAIN)
    check_training(train, spec, ", ".join(tokenizer.stop_tokens))
    evaluation: dict[str, RenderedSet] = {}
    for selection in chosen.evaluation:
        name = selection.data_set
        rendered = render_set(stage, replace(rendering, items=True), [selection], job.out_dir / FILES[name])
        check_evaluation(rendered, spec, name)
        evaluation[name] = rendered
    packs = pack(train.lengths, spec.max_length_tokens)
    write_packs(job.out_dir / PreparedData.PACKS, packs, train.lengths)
    return make_receipt(chosen, train, evaluation, packs, stage.ledger, tokenizer, spec), train.facts


def _rendering(job: Job) -> Rendering:
    spec = job.spec.data
    return Rendering(job.inputs["base"], job.spec.model, spec.learn, spec.max_length_tokens, spec.over_length)


def worker_count() -> int:
    """Processes to prepare with: one per core that this process may use."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))
