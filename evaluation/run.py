"""The evaluate stage: base, candidate and champion on the same items."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evaluation.batching import OnDone
from evaluation.generation import Generated, Limits, greedy_answers
from evaluation.items import BASE, CANDIDATE, CHAMPION, ItemResult, prompt_sha256, write_items
from evaluation.loading import context_tokens, load_model, served_dtype
from evaluation.losses import AnswerLoss, LabelledTokens, answer_losses, preferences
from evaluation.probes import as_questions, make_probes, write_probes
from evaluation.scoring import METRICS, summarise
from evaluation.suites import Draw, Suite, read_suites
from tuneline.contracts.artifacts import EvalReport, MergedModel, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import Job, ProgressEvent, Reporter
from tuneline.contracts.records import PreparedItem
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import read_record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exam:
    """What every model is asked (`target` is the first suite), and how it is scored."""

    spec: RunSpec
    suites: tuple[Suite, ...]
    tokenizer: PreTrainedTokenizerBase
    limits: Limits


class Progress:
    """Counts items over all models and suites, and reports them."""

    def __init__(self, report: Reporter, planned_items: int) -> None:
        self._report, self._planned, self._done = report, planned_items, 0

    def advance(self, items: int, note: str) -> None:
        """Report `items` more as done."""
        self._done += items
        self._report(ProgressEvent(done=self._done, planned=self._planned, unit="items", note=note))


def evaluate(job: Job, report: Reporter) -> EvalReport:
    """Ask every model the same questions; write every answer, and the probes for the served image.

    Raises:
        UserError: for a suite that no model can be compared on, or a champion with another vocabulary.
    """
    started = time.monotonic()
    exam, models = read_exam(job), _model_folders(job)
    if CHAMPION in models:
        _check_champion(models[CHAMPION], exam.tokenizer)
    progress = Progress(report, len(models) * sum(len(suite.items) for suite in exam.suites))
    by_suite = [
        results for name, folder in models.items() for results in _examine(name, folder, exam, progress, job.out_dir)
    ]
    write_items(job.out_dir / EvalReport.ITEMS, chain.from_iterable(by_suite))
    return EvalReport(
        scores=tuple(summarise(results) for results in by_suite),
        champion_version=job.options.get("champion_version"),
        seconds=time.monotonic() - started,
    )


def read_exam(job: Job) -> Exam:
    """Read what the models of a job are asked.

    Raises:
        UserError: for a suite that no model can be compared on.
    """
    spec, prepared = job.spec, job.inputs["prepared"]
    context = context_tokens(job.inputs["base"], spec)
    return Exam(
        spec=spec,
        suites=read_suites(prepared, Draw(spec.evaluation.max_items, spec.data.seed), context),
        tokenizer=_tokenizer(prepared / PreparedData.TOKENIZER),
        limits=Limits(
            stop_token_ids=read_record(prepared, PreparedData).stop_token_ids,
            max_new_tokens=spec.evaluation.max_new_tokens,
            context_tokens=context,
        ),
    )


def _model_folders(job: Job) -> dict[str, Path]:
    prepared, merged = read_record(job.inputs["prepared"], PreparedData), read_record(job.inputs["merged"], MergedModel)
    assert merged.stop_token_ids == prepared.stop_token_ids, "merge changed the stop tokens"
    assert merged.template_sha256 == prepared.template_sha256, "merge changed the chat template"
    folders = {BASE: job.inputs["base"], CANDIDATE: job.inputs["merged"] / MergedModel.MODEL}
    return folders | {CHAMPION: job.inputs[CHAMPION]} if CHAMPION in job.inputs else folders


def _examine(name: str, folder: Path, exam: Exam, progress: Progress, out_dir: Path) -> list[list[ItemResult]]:
    """Return one model's results by suite; its memory is free when this returns."""
    progress.advance(0, f"loading {name}")
    model = load_model(folder, served_dtype(exam.spec))
    results = [
        examine_suite(name, model, suite, exam, partial(progress.advance, note=f"{name} on {suite.name}"))
        for suite in exam.suites
    ]
    if name == CANDIDATE:
        questions = as_questions(exam.suites[0].items, exam.tokenizer)
        probes = make_probes(model, questions, exam.spec.serving.probes, exam.limits)
        write_probes(out_dir / EvalReport.PROBES, probes)
    return results


def examine_suite(name: str, model: PreTrainedModel, suite: Suite, exam: Exam, on_done: OnDone) -> list[ItemResult]:
    """Measure a model's losses on a suite and, unless the config says losses only, score its answers."""
    rows = [LabelledTokens(item.input_ids, item.labels) for item in suite.items]
    if exam.spec.evaluation.generate:
        losses = answer_losses(model, rows)
        answers: Sequence[Generated | None] = greedy_answers(
            model, [item.prompt_ids for item in suite.items], exam.limits, on_done
        )
    else:
        losses = answer_losses(model, rows, on_done)
        answers = [None] * len(rows)
    preferred = preferences(model, suite.items, losses)
    return [
        _result(name, suite.name, *measured, exam)
        for measured in zip(suite.items, losses, answers, preferred, strict=True)
    ]


def _result(
    name: str,
    suite: str,
    item: PreparedItem,
    loss: AnswerLoss,
    answer: Generated | None,
    preferred: Mapping[str, float],
    exam: Exam,
) -> ItemResult:
    text = _text(answer, exam.tokenizer) if answer else None
    metrics = exam.spec.evaluation.metrics if text is not None else ()
    return ItemResult(
        suite=suite,
        row_id=item.row_id,
        prompt_sha256=prompt_sha256(item.prompt_ids),
        model=name,
        answer=text,
        expected=item.answer,
        metrics={metric: float(METRICS[metric](text or "", item.answer)) for metric in metrics} | dict(preferred),
        stopped=answer.stopped if answer else None,
        new_tokens=len(answer.token_ids) if answer else 0,
        nll=loss.nll,
        answer_tokens=loss.tokens,
    )


def _text(answer: Generated, tokenizer: PreTrainedTokenizerBase) -> str:
    """Decode an answer as the server does: no stop token, no special tokens, spaces as they are."""
    token_ids = answer.token_ids[:-1] if answer.stopped else answer.token_ids
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _check_champion(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    champion = _tokenizer(folder)
    if champion.get_vocab() != tokenizer.get_vocab():
        raise UserError.of(
            "the champion has another vocabulary than this run's base model: they cannot be asked the same tokens",
            str(folder),
            "set registry.model to a new name: a model on another base starts a line of versions of its own",
        )
    if champion.chat_template != tokenizer.chat_template:
        log.warning("The champion was trained with another chat template than the one in which it is asked here.")
