"""The receipt in a terminal, and what two receipts do not share: figures recomputed from the record itself."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from receipt_cases import LONG_CONTEXT, RECEIPT, SAMPLES, STEPS, reason, step
from rich.console import Console
from tiny_model import make_tiny_base

from evaluation.report_lens import NEWLINE_SIGN, TAB_SIGN
from tuneline.cli.main import main
from tuneline.cli.receipt_diff import Difference, compare_receipts
from tuneline.cli.receipt_diff_tables import change, print_differences
from tuneline.cli.receipt_lens import CLOSING, OPENING, STOP_SIGN, lens_text
from tuneline.cli.receipt_style import BAR_COLUMNS
from tuneline.cli.receipts import print_receipt
from tuneline.contracts.data_spec import DataLimitsSpec, DataSpec
from tuneline.contracts.receipt import Piece, Receipt, Sample

SPEC = DataSpec(train="rows.jsonl")
FULL_BLOCK = "\u2588"


def printed(receipt: Receipt = RECEIPT, spec: DataSpec = SPEC, width: int = 120, samples: int = 3, **how: Any) -> str:
    out = Console(width=width, file=io.StringIO(), highlight=False, record=True, **how)
    print_receipt(receipt, spec, out, samples)
    return out.export_text()


def compared(a: Receipt, b: Receipt, width: int = 100) -> str:
    out = Console(width=width, file=io.StringIO(), highlight=False, record=True)
    print_differences(compare_receipts(a, b), out)
    return out.export_text()


def section(text: str, title: str) -> list[str]:
    """Lines under a heading, down to the next empty one."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(title))
    end = next((place for place in range(start, len(lines)) if not lines[place].strip()), len(lines))
    return [line.rstrip() for line in lines[start + 1 : end]]


def changed(**changes: Any) -> Receipt:
    return RECEIPT.model_copy(update=changes)


@pytest.mark.parametrize("width", [80, 120])
def test_funnel_has_every_step_with_its_rows_and_tokens_and_marks_the_estimated_ones(width: int) -> None:
    lines = section(printed(width=width), "Where every row went")
    numbers = [re.findall(r"(?<!\S)(~?[\d,]+)(?!\S)", line)[:2] for line in lines[1:]]
    found = [(pair[0], pair[1]) for pair in numbers if len(pair) == 2]
    assert found == [
        (f"{line.rows_out:,}", f"{'~' if line.tokens_estimated else ''}{line.tokens_out:,}") for line in STEPS
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_but_the_samples_is_wider_than_the_terminal(width: int) -> None:
    head = printed(width=width).split("What the model learns")[0]
    assert max(len(line) for line in head.splitlines()) <= width


def test_every_reason_is_printed_with_its_count_its_first_rows_and_how_many_more_there_are() -> None:
    text = " ".join(printed(width=200).split())
    reasons = [one for line in STEPS for one in line.dropped]
    noted = [one for line in STEPS for one in line.noted]
    assert len(reasons) == 12
    assert len(noted) == 4
    for sign, one in [*(("-", one) for one in reasons), *(("", one) for one in noted)]:
        more = [f"and {one.rows - 5:,} more"] if one.rows > 5 else []
        between = " " if max(map(len, one.examples[:5])) > 36 else "; "  # long ones stand on lines of their own
        assert f"{sign}{one.rows:,} {one.reason} {between.join([*one.examples[:5], *more])}" in text, one.reason


def test_rows_that_go_without_a_reason_are_shown_and_so_are_rows_that_a_step_makes() -> None:
    steps = (
        step("train", "clean", 100, 90, 1, dropped=(reason("empty answer", 4),)),
        step("train", "length", 90, 97, 1, dropped=(reason("too long", 3),)),
    )
    lines = section(printed(changed(steps=steps)), "Where every row went")
    assert [line for line in lines if line.endswith(f"-{100 - 4 - 90} without a reason")]
    assert [line for line in lines if line.endswith(f"+{97 - (90 - 3)} made in this step")]
    assert "without a reason" not in printed()


def check_line(text: str, name: str) -> str:
    return " ".join(next(line for line in section(text, "Checks") if name in line).split())


def test_checks_are_held_against_the_limits_of_the_config() -> None:
    share = 100 * RECEIPT.checks.ends_with_stop_share
    line = f"Rows that end with a learned stop token {share:.2f} %"
    assert check_line(printed(), "stop token") == f"\u2713 good {line} at least 99.00 %"
    strict = SPEC.model_copy(update={"limits": DataLimitsSpec(min_stop_share=0.9995)})
    assert check_line(printed(spec=strict), "stop token") == f"\u2717 bad {line} at least 99.95 %"
    altered = 100 * RECEIPT.checks.altered_rows / RECEIPT.rows.train
    assert check_line(printed(), "alters") == f"! look Rows that the template alters 4 ({altered:.2f} %) at most 1.00 %"
    two_bos = changed(checks=RECEIPT.checks.model_copy(update={"two_bos_rows": 3}))
    assert check_line(printed(), "BOS").startswith("\u2713 good")
    assert check_line(printed(two_bos), "BOS") == "\u2717 bad Rows with two BOS tokens 3 none allowed"


def test_a_share_that_is_not_whole_is_never_rounded_to_none_or_all() -> None:
    almost = changed(checks=RECEIPT.checks.model_copy(update={"ends_with_stop_share": 0.999999}))
    assert "over 99.99 %" in check_line(printed(almost), "stop token")
    few = changed(rows=RECEIPT.rows.model_copy(update={"train": 5_000_000}))
    assert "4 (under 0.01 %)" in check_line(printed(few), "alters")


def test_learned_share_of_each_role_is_a_figure_and_a_bar_in_proportion() -> None:
    lines = {line.split()[0]: line for line in section(printed(), "Learned, by role")}
    learned, tokens = RECEIPT.tokens.learned_by_role["assistant"], RECEIPT.tokens.by_role["assistant"]
    assert lines["assistant"].split()[1:5] == [f"{tokens:,}", f"{learned:,}", f"{100 * learned / tokens:.1f}", "%"]
    assert lines["assistant"].count(FULL_BLOCK) == round(BAR_COLUMNS * 8 * learned / tokens) // 8
    assert lines["user"].count(FULL_BLOCK) == 0


def test_leaks_are_counted_against_the_size_of_the_set_and_the_policy_is_said() -> None:
    lines = section(printed(), "Training rows that evaluation knows too")
    touched = 100 * RECEIPT.leaks[0].items_touched / 1_000  # before some of the items are too long
    assert lines[1].split() == f"! look held out 0 41 17 22 of 1,000 ({touched:.1f} %)".split()
    assert lines[3] == "  They stay in the training rows (data.leaks is report)."
    assert "In held out, 12 runs of 13 words were not looked for" in lines[4]
    dropped = section(printed(spec=SPEC.model_copy(update={"leaks": "drop_from_train"})), "Training rows that")
    assert "were dropped from the training rows" in dropped[3]
    clean = RECEIPT.leaks[1].model_copy(update={"exact_prompts": reason("same prompt", 0), "items_touched": 0})
    lines = section(printed(changed(leaks=(clean,))), "Training rows that evaluation knows too")
    assert [line.split()[:2] for line in lines[1:]] == [["\u2713", "good"]]


def test_histogram_has_a_bar_in_proportion_for_every_bin_under_the_percentiles() -> None:
    lines = section(printed(), "Lengths, in tokens")
    assert lines[0].split() == ["p50", "171", "p90", "371", "p95", "460", "p99", "655", "max", "1,019"]
    bins = RECEIPT.length_histogram
    most = max(one.rows for one in bins)
    for one, line in zip(bins, lines[2:], strict=True):
        assert line.split()[:4] == [f"{one.from_tokens:,}", "to", f"{one.to_tokens:,}", f"{one.rows:,}"]
        assert line.count(FULL_BLOCK) == max(1, round(16 * BAR_COLUMNS * one.rows / most)) // 8


def test_limits_say_what_they_would_cost_and_the_one_in_use_is_marked() -> None:
    lines = section(printed(), "What a limit on the length would cost")[1:]
    for limit, line in zip(RECEIPT.length_limits, lines, strict=True):
        drop, cut = limit.learned_share_lost_by_drop, limit.learned_share_lost_by_truncate_right
        figures = f"{limit.limit_tokens:,} {limit.rows_over:,} {100 * drop:.2f} % {100 * cut:.2f} %".split()
        assert line.split()[:6] == figures
        assert line.endswith("in use") == (limit.limit_tokens == SPEC.max_length_tokens)


def test_packing_and_template_are_said() -> None:
    packing, text = RECEIPT.packing, printed()
    shares = [" ".join(line.split()[:-1]) for line in section(text, "Packing: 2,431 packs of at most 1,019 tokens")[1:]]
    assert shares == [
        f"each row padded to the longest {100 * packing.unpacked_efficiency:.1f} %",
        f"packed {100 * packing.total_efficiency:.1f} %",
        f"packed, learned tokens only {100 * packing.learned_efficiency:.1f} %",
    ]
    assert section(text, "Chat template") == [f"  sha256 {RECEIPT.template.sha256}", "  prefix-stable"]


def learned_text(sample: Sample) -> str:
    return "".join(piece.text for piece in sample.pieces if piece.learned)


def without_signs(text: str) -> str:
    return re.sub(f"[{NEWLINE_SIGN}{TAB_SIGN}{STOP_SIGN}]", "", text)


@pytest.mark.parametrize("how", [{}, {"force_terminal": True, "no_color": True}])
def test_without_colours_brackets_hold_what_is_learned_and_nothing_else(how: dict[str, Any]) -> None:
    for number, sample in enumerate(SAMPLES, 1):
        lens = printed(**how).split(f"sample {number} of 3: {sample.row_id}")[1].split("\nsample ")[0]
        bracketed = "".join(re.findall(f"{OPENING}(.*?){CLOSING}", lens, re.S))
        assert without_signs(bracketed) == learned_text(sample)
        assert bracketed.count(STOP_SIGN) == sum(piece.stop for piece in sample.pieces)


def test_with_colours_a_background_lies_under_what_is_learned_and_nothing_else() -> None:
    out = Console(width=120, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for sample in SAMPLES:
        segments = list(out.render(lens_text(sample, coloured=True)))
        marked = "".join(one.text for one in segments if one.style is not None and one.style.bgcolor is not None)
        assert without_signs(marked).replace("\n", "") == learned_text(sample).replace("\n", "")
    text = printed(force_terminal=True, color_system="truecolor")
    assert "I am sorry" in text
    assert OPENING not in text


def test_long_unlearned_pieces_lose_their_middle_and_say_how_much_of_it() -> None:
    text = printed()
    whole = next(piece.text for piece in SAMPLES[1].pieces if LONG_CONTEXT in piece.text)
    assert f"[... {len(whole) - 500:,} characters left out ...]" in text
    assert "Line 0:" in text
    assert "Line 30:" not in text
    assert "Which depot?" in text
    long_answer = Sample(row_id="r:1", pieces=(Piece(text="\n".join(map(str, range(3_000))), learned=True),))
    shown = without_signs(printed(changed(samples=(long_answer,))))
    assert learned_text(long_answer) in shown


def test_control_characters_are_shown_and_never_sent_wherever_they_come_from() -> None:
    evil = "\x1b[2J\u202e\x07\n\t"
    hostile = json.loads(RECEIPT.model_dump_json())
    hostile["sources"][0]["path"] += evil
    hostile["steps"][0]["step"] += evil
    hostile["steps"][0]["dropped"][0]["reason"] += evil
    hostile["steps"][0]["dropped"][0]["examples"][0] += evil
    hostile["tokens"]["by_role"][evil] = 1
    hostile["samples"][0]["row_id"] += evil
    hostile["samples"][0]["pieces"][1]["text"] += evil
    text = printed(Receipt.model_validate(hostile), width=200)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert text.count("\\x1b[2J\\u202e\\x07") >= 8  # the samples' own \x1b is one more


def test_markup_in_names_is_printed_as_it_is() -> None:
    source = RECEIPT.sources[0].model_copy(update={"path": "[bold]a[/bold].jsonl"})
    assert "[bold]a[/bold].jsonl" in printed(changed(sources=(source,)))


def test_as_many_samples_are_shown_as_were_asked_for() -> None:
    assert [printed(samples=count).count("sample ") for count in (0, 1, 3)] == [0, 1, 3]


Path_ = tuple[str | int, ...]


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, dict | list):
        yield path, value
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def with_other_value(path: Path_) -> Receipt:
    document: Any = json.loads(RECEIPT.model_dump_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    value = place[path[-1]]
    place[path[-1]] = not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1
    return Receipt.model_validate(document)


def test_no_change_of_any_value_of_a_receipt_goes_unseen() -> None:
    paths = [path for path, _ in leaves(json.loads(RECEIPT.model_dump_json()))]
    assert len(paths) > 300
    assert [path for path in paths if not compare_receipts(RECEIPT, with_other_value(path))] == []
    assert compare_receipts(RECEIPT, RECEIPT) == ()


def test_lines_that_only_one_receipt_has_are_differences_too() -> None:
    for name in ("sources", "steps", "length_histogram", "length_limits", "leaks", "samples"):
        shorter = changed(**{name: getattr(RECEIPT, name)[:-1]})
        found = compare_receipts(RECEIPT, shorter)
        assert found and all(one.b is None and one.a is not None for one in found), name
        assert all(change(one) == "only in A" for one in found)
        assert [(one.name, one.b) for one in compare_receipts(shorter, RECEIPT)] == [(one.name, one.a) for one in found]


def test_two_samples_of_one_row_are_compared_each_with_its_own() -> None:
    first, second = SAMPLES[0], SAMPLES[1].model_copy(update={"row_id": SAMPLES[0].row_id})
    third = SAMPLES[2].model_copy(update={"row_id": SAMPLES[0].row_id})
    found = compare_receipts(changed(samples=(first, second)), changed(samples=(first, third)))
    assert [(one.section, one.name) for one in found] == [("samples", f"{first.row_id} (2)")]


def test_counts_change_in_per_cent_of_a_and_shares_in_points() -> None:
    steps = (STEPS[0].model_copy(update={"rows_out": 13_000}), *STEPS[1:])
    checks = RECEIPT.checks.model_copy(update={"ends_with_stop_share": 0.95, "two_bos_rows": 3})
    text = compared(RECEIPT, changed(steps=steps, checks=checks))
    before, points = STEPS[0].rows_out, 100 * (0.95 - RECEIPT.checks.ends_with_stop_share)
    delta = f"{13_000 - before:+,} ({100 * (13_000 - before) / before:+.1f} %)"
    assert [line.split() for line in section(text, "steps")[1:]] == [
        ["train,", "read:", "rows", "out", f"{before:,}", "13,000", *delta.split()]
    ]
    assert [" ".join(line.split()) for line in section(text, "checks")[1:]] == [
        f"ends with stop share 99.87 % 95.00 % {points:+.2f} points",
        "two bos rows 0 3 +3",
    ]


def test_a_template_that_differs_by_one_newline_is_shown_as_a_diff_of_its_lines() -> None:
    text = RECEIPT.template.text.replace("<|im_end|>\n", "<|im_end|>\n\n")
    template = RECEIPT.template.model_copy(update={"text": text, "sha256": "cc33" * 16})
    lines = section(compared(RECEIPT, changed(template=template)), "template")
    assert lines[1].split() == ["sha256", "bb22bb22...bb22", "cc33cc33...cc33"]
    assert [line.strip() for line in lines if line.strip().startswith(("+", "-"))] == ["--- A text", "+++ B text", "+"]


def test_row_ids_that_came_and_went_are_named() -> None:
    dropped = (STEPS[2].dropped[0].model_copy(update={"examples": ("new.jsonl:1", *STEPS[2].dropped[0].examples[1:])}),)
    steps = (*STEPS[:2], STEPS[2].model_copy(update={"dropped": dropped}), *STEPS[3:])
    assert section(compared(RECEIPT, changed(steps=steps)), "left out") == [
        "  train, duplicates: repeats an earlier row, first rows",
        f"    only in A: {STEPS[2].dropped[0].examples[0]}",
        "    only in B: new.jsonl:1",
    ]


def tuneline(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments)


def test_diff_takes_files_and_folders_and_says_that_equal_receipts_are_equal(tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text(RECEIPT.model_dump_json())
    shown = tuneline("data", "diff", str(tmp_path), str(tmp_path / "receipt.json"))
    assert (shown.exit_code, "The receipts are equal." in shown.output) == (0, True)


def test_diff_prints_facts_and_exits_with_zero_as_tables_and_as_json(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    other = changed(seed=18)
    a.write_text(RECEIPT.model_dump_json())
    b.write_text(other.model_dump_json())
    shown = tuneline("data", "diff", str(a), str(b))
    assert shown.exit_code == 0
    assert [line.split() for line in section(shown.output, "run")[1:]] == [["seed", "17", "18", "+1", "(+5.9", "%)"]]
    as_json = tuneline("data", "diff", str(a), str(b), "--json")
    assert [Difference(**one) for one in json.loads(as_json.output)] == list(compare_receipts(RECEIPT, other))


def test_what_is_no_receipt_is_refused_with_the_place_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"kind": "conversation"}')
    absent = tuneline("data", "diff", str(tmp_path), str(tmp_path))
    assert absent.exit_code == 2
    assert f"{tmp_path / 'receipt.json'}: there is no receipt" in absent.output
    old = tuneline("data", "diff", str(tmp_path / "old.json"), str(tmp_path / "old.json"))
    assert old.exit_code == 2
    assert "this is no receipt of this version: sources: Field required" in old.output
    assert "tuneline data inspect CONFIG" in old.output


def test_a_config_is_prepared_shown_found_again_and_equal_to_the_receipt_that_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """57 good rows, 3 that repeat the first of them, and 2 without an answer."""
    rows = [{"prompt": f"red {number}", "completion": "green"} for number in range(57)]
    rows += [rows[0]] * 3 + [{"prompt": "blue", "completion": " "}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = make_tiny_base(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(
        f"name: demo\nmodel: {{base: {base}}}\n"
        "data: {train: rows.jsonl, limits: {max_bad_rows_share: 0.1}, max_length_tokens: 64}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    shown = tuneline("data", "inspect", "run.yaml")
    assert shown.exit_code == 0, shown.output
    funnel = "\n".join(section(shown.output, "Where every row went"))
    assert sorted(re.findall(r"  -(\d+) ", funnel))[:2] == ["2", "3"]
    file = Path(re.search(r"^receipt +(\S+) \(made in", shown.output, re.M)[1])  # type: ignore[index]
    receipt = Receipt.model_validate_json(file.read_bytes())
    assert receipt.rows.train + receipt.rows.held_out == 57
    assert (file.parent / "dropped.jsonl").read_text().count("\n") >= 5
    again = tuneline("data", "inspect", "run.yaml", "--json")
    assert Receipt.model_validate_json(again.stdout) == receipt
    found = tuneline("data", "inspect", "run.yaml", "--samples", "0").output
    assert f"receipt  {file} (found, made by an earlier run)" in found
    assert "What the model learns" not in found
    assert "The receipts are equal." in tuneline("data", "diff", "run.yaml", str(file)).output
