import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from html.parser import HTMLParser

import pytest
from receipt_cases import RECEIPT
from tiny_model import write_rows

from evaluation.gate import decide
from evaluation.items import ItemResult, write_items
from evaluation.report import ReportInputs, read_inputs, render_report
from evaluation.report_samples import choose_samples
from tuneline.contracts import receipt
from tuneline.contracts.artifacts import (
    Adapter,
    Certificate,
    DerivedValue,
    Estimate,
    EvalReport,
    MemoryRung,
    MergedModel,
    ModuleCoverage,
    Outcome,
    Plan,
    Preflight,
    PreparedData,
    Record,
    Rung,
    ServingImage,
    SmokeReport,
    SuiteScore,
    Verdict,
)
from tuneline.contracts.receipt import Receipt
from tuneline.contracts.records import PreparedItem
from tuneline.contracts.run_record import RunRecord, StageLine
from tuneline.contracts.spec import DataSpec, ModelSpec, RunSpec
from tuneline.contracts.store import ArtifactStore

GIB = 2**30
SPEC = RunSpec(name="intents", model=ModelSpec(base="some/base"), data=DataSpec(train="rows.csv"))
HOSTILE = "<script>alert('x')</script>"
RECORDS = [kind for kind in vars(receipt).values() if isinstance(kind, type) and issubclass(kind, Record)]
FIELDS = {name for record in RECORDS for name in record.model_fields}
VOID = {"meta", "br", "line", "polygon", "polyline", "circle"}


class Page(HTMLParser):
    """A page's text, the addresses that it would load, and whether its tags are balanced."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.loads, self.tags = [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def item(row, model, right, **changes):
    values = {
        "prompt_sha256": str(row),
        "answer": "card" if right else f"{model} rambles",
        "expected": "card",
        "metrics": {"exact_match": float(right)},
        "stopped": True,
        "new_tokens": 3,
        "nll": 1.0,
        "answer_tokens": 2,
        **changes,
    }
    return ItemResult(suite="target", row_id=f"test.csv:{row}", model=model, **values)


def answers(base, candidate, items=100):
    return tuple(
        item(row, model, row < right)
        for model, right in (("base", base), ("candidate", candidate))
        for row in range(items)
    )


def stage(name, status="made", **changes):
    return StageLine(stage=name, status=status, seconds=1.5, made=f"{name} made this", **changes)


def run_record(outcome="PROMOTE", **changes):
    values = {"overrides": (), "seconds": 125.0, "exit_code": 0, "model": "intents", "model_version": "4", **changes}
    started = datetime(2026, 11, 24, 13, 22, tzinfo=UTC).isoformat()
    return RunRecord(
        run_id="intents-20261124-132200",
        name="intents",
        config="intents.yaml",
        started_at=started,
        outcome=outcome,
        **values,
    )


def estimate(low, expected, high):
    return Estimate(low=low, expected=expected, high=high)


PLAN = Plan(
    device="cpu",
    parameters=1000,
    trainable_parameters=10,
    optimizer_steps=40,
    micro_batch_rows=8,
    accumulation_steps=4,
    activation_checkpointing=False,
    packing=False,
    memory_bytes=estimate(2 * GIB, 3 * GIB, 4 * GIB),
    memory_limit_bytes=5 * GIB,
    memory_parts_bytes={"weights": GIB, "activations": 2 * GIB},
    tokens_per_second=estimate(500, 600, 700),
    hours=estimate(0.1, 0.2, 0.3),
    usd=estimate(1.0, 2.5, 4.0),
    derived=(DerivedValue(key="training.packing", value="off", reason="on CPU packing loses"),),
)
ADAPTER = Adapter(
    method="lora",
    optimizer_steps=40,
    train_tokens=100_000,
    train_seconds=125.0,
    first_loss=3.5,
    last_loss=0.25,
    resumed_from_step=20,
    peak_memory_bytes=int(3.5 * GIB),
    trainable_parameters=10,
    coverage=(ModuleCoverage(module="q_proj", adapted=4, total=4),),
    weights_sha256="aa11",
)
PREPARED = PreparedData(
    kind="conversation",
    train_rows=RECEIPT.rows.train,
    held_out_rows=RECEIPT.rows.held_out,
    retention_rows=RECEIPT.rows.retention,
    train_tokens=RECEIPT.tokens.train,
    learned_tokens=RECEIPT.tokens.learned,
    packs=RECEIPT.packing.packs,
    lengths=RECEIPT.lengths,
    stop_token_ids=(7,),
    template_sha256=RECEIPT.template.sha256,
    receipt_sha256="cc33",
)
CERTIFICATE = Certificate(
    base="dequantised",
    samples=64,
    tokens=4812,
    mean_kl=2e-6,
    p99_kl=3e-2,
    top1_agreement=0.9991,
    trained_nll=0.5,
    merged_nll=0.501,
    original_base_nll=0.6,
    pairs_used=4,
    tensors_changed=4,
    tensors_total=9,
    weights_sha256="ee55",
    limits={"mean_kl": 1e-4, "p99_kl": 1e-2, "top1_agreement": 0.98, "merged_nll": 0.005},
)
MERGED = MergedModel(
    bytes=GIB, shards=1, dtype="bfloat16", template_sha256="bb22", stop_token_ids=(7,), certificate=CERTIFICATE
)
IMAGE = ServingImage(
    reference="tuneline/intents:4",
    manifest_digest="sha256:ff66",
    image_id="sha256:0077",
    base_name="vllm/vllm-openai:v0.32.0",
    base_id="sha256:1188",
    weights_bytes=GIB,
    own_layers=3,
)
SMOKE = SmokeReport(
    passed=False,
    rungs=(Rung(name="starts", passed=True, figure="71 s"), Rung(name="drains", passed=False, figure="aborted")),
    start_seconds=71.0,
    total_seconds=96.0,
    image_id="sha256:0077",
)
METRICS = tuple({"step": step, "loss": 3.5 / step, "learning_rate": 1e-4 / step} for step in range(1, 41))


def scores(items):
    by_model = {model: [one for one in items if one.model == model] for model in ("base", "candidate")}
    return tuple(
        SuiteScore(
            model=model,
            suite="target",
            items=len(mine),
            metrics={
                "exact_match": sum(one.metrics["exact_match"] for one in mine) / len(mine),
                "held_out_loss": 0.123,
            },
        )
        for model, mine in by_model.items()
    )


@pytest.fixture
def inputs():
    items = answers(base=3, candidate=92)
    evaluation = EvalReport(scores=scores(items), champion_version=None, seconds=9.0)
    return ReportInputs(
        run=run_record(stages=(stage("prepare", "found", fingerprint="9fee"), stage("release"))),
        spec=SPEC,
        prepared=PREPARED,
        receipt=RECEIPT,
        plan=PLAN,
        adapter=ADAPTER,
        metrics=METRICS,
        merged=MERGED,
        evaluation=evaluation,
        items=items,
        prompts={"test.csv:3": "Where is my card?"},
        verdict=decide(evaluation, items, SPEC.gate),
        image=IMAGE,
        smoke=SMOKE,
    )


def test_page_holds_the_figures_of_every_stage(inputs):
    text = Page(render_report(inputs)).text
    for expected in (
        "intents version 4",
        "2026-11-24 13:22",
        "Exact match on 100 held-out items rose from the base model's 3.0 % to 92.0 %",
        "Forgetting was not checked",
        "89 fixed, 8 still wrong, 0 broken, 3 right in both",
        "prepare made this",
        "12,645 rows to train on, 998 held out, 400 for retention",
        "99.9 % of the rows end with a learned stop token",
        "513,450 are learned (21.0 %)",
        "on CPU packing loses",
        "resumed at step 20",
        "at most 1.0e-02",
        "99.91 %",
        "Loss when merged on the base before NF4",
        "tuneline/intents:4",
        "sha256:ff66",
        "train: rows.csv",
    ):
        assert expected in text, expected


def test_measured_figures_stand_beside_the_plan_and_say_whether_they_are_inside_it(inputs):
    """800 tokens a second were measured where 500 to 700 were planned; 3.5 GiB where 2 to 4 were."""
    rows = re.findall(r"<tr>(.*?)</tr>", render_report(inputs), re.S)
    speed, memory = (
        next(Page(row).text for row in rows if name in row) for name in ("Tokens per second", "Peak memory")
    )
    assert speed == "Tokens per second 500 600 700 800 outside"
    assert memory == "Peak memory 2.0 GiB 3.0 GiB 4.0 GiB 3.5 GiB inside"


def test_what_the_preflight_measured_and_each_rung_of_the_memory_ladder_are_on_the_page(inputs):
    preflight = Preflight(
        longest_steps=3,
        micro_batch_tokens=900,
        seconds=4.0,
        peak_memory_bytes=int(3.2 * GIB),
        tokens_per_second=750.0,
        hours=0.25,
        usd=3.125,
    )
    rung = MemoryRung(
        action="half the micro-batch",
        micro_batch_divisor=2,
        activation_checkpointing=False,
        activation_offloading=False,
        after_step=1200,
        cause="CUDA out of memory",
    )
    adapter = ADAPTER.model_copy(update={"preflight": preflight, "rungs": (rung,)})
    page = render_report(replace(inputs, adapter=adapter))
    assert table_rows(page, "Preflight")[1:] == [
        "Peak memory 2.0 GiB 3.0 GiB 4.0 GiB 3.2 GiB 3.5 GiB inside",
        "Tokens per second 500 600 700 750 800 outside",
        "Training time 6 min 0 s 12 min 18 min 15 min 2 min 5 s outside",
        "Cost, USD 1.00 2.50 4.00 3.12 0.43 outside",
    ]
    assert table_rows(page, "After step")[1:] == ["1,200 half the micro-batch 1/2 CUDA out of memory"]
    assert "After step" not in render_report(inputs)


def test_limit_that_a_certificate_misses_is_shown_as_broken(inputs):
    rows = re.findall(r"<tr>(.*?)</tr>", render_report(inputs), re.S)
    names = ("Mean KL", "99th percentile", "Change of the loss")
    kinds = {name: next(Page(row).text for row in rows if name in row) for name in names}
    assert kinds["Mean KL"].endswith("at most 1.0e-04 held")
    assert kinds["99th percentile"].endswith("at most 1.0e-02 broken")
    assert kinds["Change of the loss"].endswith("0.20 % at most 0.50 % held")


def data_section(inputs):
    return re.search(r'<section id="data">.*?</section>', render_report(inputs), re.S)[0]


def words(html):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def table_rows(html, holding):
    tables = re.findall(r"<table>(.*?)</table>", html, re.S)
    table = next(table for table in tables if holding in table)
    return [words(row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)]


def test_funnel_draws_every_step_in_proportion_to_the_most_its_data_set_had(inputs):
    drawn = data_section(inputs).split('<div class="step">')[1:]
    for line, html in zip(RECEIPT.steps, drawn, strict=True):
        mine = [one for one in RECEIPT.steps if one.data_set == line.data_set]
        most_rows, most_tokens = max(one.rows_in for one in mine), max(one.tokens_out for one in mine)
        widths = [float(width) for width in re.findall(r"width:([\d.]+)%", html)[:4]]
        shares = (line.rows_in / most_rows, line.rows_out / most_rows, 0, line.tokens_out / most_tokens)
        assert widths == [pytest.approx(100 * share, abs=0.006) for share in shares]
        about = "~" if line.tokens_estimated else ""
        assert f"{line.step} {line.rows_out:,} rows {about}{line.tokens_out:,} tokens" in words(html)


def test_every_reason_folds_out_to_its_row_ids(inputs):
    folds = re.findall(r'<details class="fate"><summary>(.*?)</summary>(.*?)</details>', data_section(inputs), re.S)
    shown = {words(head): [words(item) for item in re.findall(r"<li>(.*?)</li>", body)] for head, body in folds}
    for sign, after, reason in (
        *(("-", "", one) for line in RECEIPT.steps for one in line.dropped),
        *(("", " (kept)", one) for line in RECEIPT.steps for one in line.noted),
    ):
        more = reason.rows - len(reason.examples)
        ids = [*reason.examples, *([f"and {more:,} more"] if more else [])]
        assert shown[f"{sign}{reason.rows:,} {reason.reason}{after}"] == ids
    assert shown["41 rows: 13 words in a row in held out"][-1] == "and 21 more"


def test_checks_leaks_limits_roles_and_packing_stand_in_tables_with_a_mark_for_good_and_bad(inputs):
    html = data_section(inputs)
    checks = table_rows(html, "prefix-stable")
    assert checks[0] == "Rows that end with a learned stop token at least 99.00 % 99.87 % \u2713 good"
    assert checks[1] == "Rows with two BOS tokens none allowed 0 \u2713 good"
    assert checks[4] == "Rows that the template alters at most 1.00 % 4 (0.03 %) ! look"
    two_bos = RECEIPT.model_copy(update={"checks": RECEIPT.checks.model_copy(update={"two_bos_rows": 3})})
    assert table_rows(data_section(replace(inputs, receipt=two_bos)), "prefix")[1].endswith("3 \u2717 bad")
    assert table_rows(html, "13 words in a row")[1] == "held out ! look 0 41 17 22 of 1,000 (2.2 %)"
    assert table_rows(html, "Rows over it")[1:] == [
        f"{limit.limit_tokens:,} tokens {limit.rows_over:,} {100 * limit.learned_share_lost_by_drop:.2f} % "
        f"{100 * limit.learned_share_lost_by_truncate_right:.2f} %{' in use' if limit.limit_tokens == 1024 else ''}"
        for limit in RECEIPT.length_limits
    ]
    assert "assistant 513,450 of 726,100 tokens 70.7 %" in table_rows(html, "of 726,100")
    assert [row.rsplit(" ", 2)[1] for row in table_rows(html, "padded")] == ["19.0", "98.7", "20.7"]


def test_length_histogram_has_a_bar_as_tall_as_its_rows(inputs):
    bars = re.findall(r'<rect .*?y="([\d.]+)".*?height="([\d.]+)"><title>(.*?)</title>', data_section(inputs))
    tallest = max(one.rows for one in RECEIPT.length_histogram)
    height = max(float(height) for _, height, _ in bars)
    for one, (top, tall, label) in zip(RECEIPT.length_histogram, bars, strict=True):
        assert label == f"{one.from_tokens:,} to {one.to_tokens:,} tokens: {one.rows:,} rows"
        assert float(tall) == pytest.approx(height * one.rows / tallest, abs=0.11)
        assert float(top) + float(tall) == pytest.approx(214.0, abs=0.11)


def test_mask_lens_marks_what_is_learned_and_the_stop_token_and_nothing_else(inputs):
    lenses = re.findall(r'<pre class="lens">(.*?)</pre>', data_section(inputs), re.S)
    for sample, lens in zip(RECEIPT.samples, lenses, strict=True):
        marked = unescape(re.sub(r"<[^>]+>", "", "".join(re.findall(r"<mark.*?>(.*?)</mark>", lens, re.S))))
        assert marked.replace("\u21b5", "") == "".join(piece.text for piece in sample.pieces if piece.learned)
        stops = re.findall(r'<mark class="stop">(.*?)</mark>', lens)
        assert [unescape(stop) for stop in stops] == [piece.text for piece in sample.pieces if piece.stop]
    assert lenses[0].endswith('<mark class="stop">&lt;|im_end|&gt;</mark><i class="control">\u21b5\n</i>')
    assert "characters left out" in lenses[1] and "Line 30:" not in lenses[1]


def test_chat_template_folds_out_with_its_hash(inputs):
    fold = data_section(inputs).split("<summary>Chat template</summary>")[1]
    assert f"sha256 {RECEIPT.template.sha256}" in words(fold)
    assert unescape(re.search(r"<pre>(.*?)</pre>", fold, re.S)[1]) == RECEIPT.template.text


def test_page_loads_nothing_and_runs_no_script(inputs):
    html = render_report(inputs)
    page = Page(html)
    assert page.loads and all(address.startswith("#") for address in page.loads)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in html and "url(" not in html
    assert page.open == []
    assert len(html) < 1_000_000


def hostile_everywhere(value):
    """Every text of a receipt, keys of mappings too, with a script after it."""
    if isinstance(value, dict):
        return {key if key in FIELDS else key + HOSTILE: hostile_everywhere(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile_everywhere(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_text_of_users_and_models_is_escaped_wherever_it_stands(inputs):
    items = tuple(one.model_copy(update={"answer": HOSTILE, "expected": HOSTILE}) for one in inputs.items)
    hostile = replace(
        inputs,
        items=items,
        receipt=Receipt.model_validate(hostile_everywhere(json.loads(RECEIPT.model_dump_json()))),
        prompts={"test.csv:3": HOSTILE},
        run=run_record(error=HOSTILE, stages=(StageLine(stage="train", status="failed", seconds=1.0, made=HOSTILE),)),
    )
    html = render_report(hostile)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 300


def test_run_that_stopped_early_has_a_page_of_what_it_reached():
    stopped = run_record(
        "FAILED",
        model_version=None,
        error="train diverged: lower training.learning_rate",
        stages=(stage("train", "failed"),),
    )
    html = render_report(ReportInputs(run=stopped, spec=SPEC, plan=PLAN))
    text = Page(html).text
    assert "FAILED" in text and "train diverged: lower training.learning_rate" in text
    assert 'id="plan"' in html
    assert not any(f'id="{section}"' in html for section in ("gate", "answers", "data", "training", "merge", "image"))


def test_rejected_run_shows_its_verdict_and_has_no_image_section(inputs):
    verdict = decide(inputs.evaluation, answers(60, 40), SPEC.gate)
    html = render_report(replace(inputs, verdict=verdict, image=None, smoke=None))
    assert '<div class="badge reject">REJECT</div>' in html
    assert 'class="is-reject"' in html and 'id="image"' not in html


def test_everything_is_read_from_the_store_by_the_stage_lines(inputs, tmp_path):
    def keep(name, record, write=lambda folder: None):
        store = ArtifactStore(tmp_path)
        with store.work(name, "f00d", keep=True) as work:
            write(work)
            stored = store.commit(name, "f00d", work, record, 1.0)
        return StageLine(stage=name, status="made", seconds=1.0, made="", fingerprint="f00d", path=stored.path)

    def write_prepared(folder):
        (folder / PreparedData.RECEIPT).write_text(RECEIPT.model_dump_json())
        messages = json.dumps([{"role": "system", "content": "s"}, {"role": "user", "content": "Where is my card?"}])
        item = {"row_id": "test.csv:3", "messages": messages, "answer": "card"}
        empty = {name: [] for name in ("input_ids", "labels", "prompt_ids", "answer_ids")}
        write_rows(folder / PreparedData.HELD_OUT, PreparedItem, [{**item, **empty}])

    def write_metrics(folder):
        (folder / Adapter.METRICS).write_text("".join(json.dumps(line) + "\n" for line in METRICS))

    lines = (
        keep("prepare", PREPARED, write_prepared),
        keep("plan", PLAN),
        keep("train", ADAPTER, write_metrics),
        keep("merge", MERGED),
        keep("evaluate", inputs.evaluation, lambda folder: write_items(folder / EvalReport.ITEMS, inputs.items)),
        keep("decide", inputs.verdict),
        keep("package", IMAGE),
        StageLine(stage="verify", status="skipped", seconds=0.0, made="no engine"),
    )
    run = run_record(stages=lines)
    assert read_inputs(run, SPEC) == replace(inputs, run=run, smoke=None)


def test_samples_show_each_kind_spread_over_the_suite_with_every_models_answer():
    items = (*answers(base=10, candidate=60), *(item(row, "champion", right=True) for row in range(100)))
    chosen = choose_samples(items, "exact_match")
    assert chosen is not None
    assert chosen.counts == {"fixed": 50, "still wrong": 40, "broken": 0, "right in both": 10}
    fixed = [sample for sample in chosen.samples if sample.kind == "fixed"]
    assert [sample.row_id for sample in fixed] == ["test.csv:10", "test.csv:35"]
    assert [(answer.model, answer.right) for answer in fixed[0].answers] == [
        ("base", False),
        ("candidate", True),
        ("champion", True),
    ]


def test_item_that_training_broke_is_shown_as_broken():
    items = (item(1, "base", right=True), item(1, "candidate", right=False))
    chosen = choose_samples(items, "held_out_loss")
    assert chosen is not None and [sample.kind for sample in chosen.samples] == ["broken"]


def test_no_samples_without_generated_answers():
    silent = (item(1, "base", True, metrics={}, answer=None), item(1, "candidate", True, metrics={}, answer=None))
    assert choose_samples(silent, "held_out_loss") is None


def test_verdict_of_a_loss_is_drawn_in_nats(inputs):
    check = inputs.verdict.checks[0].model_copy(update={"estimate": 1.5, "low": 1.2, "high": 1.8})
    spec = SPEC.model_copy(update={"gate": SPEC.gate.model_copy(update={"metric": "held_out_loss"})})
    verdict = Verdict(outcome=Outcome.PROMOTE, checks=(check,), reasons=(check.reason,), champion_version=None)
    assert "+1.500 nats (+1.200 to +1.800)" in render_report(replace(inputs, spec=spec, verdict=verdict))
