"""Packs hold every row once, within the capacity, and nearly as few of them as can be; the trainer reads them apart."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import make_prepared, make_tiny_base
from transformers import LlamaForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tuneline.contracts.artifacts import PreparedData
from tuneline.data.packing import Packs, pack
from tuneline.data.prepared_rows import write_packs


def contents(packs: Packs) -> list[list[int]]:
    return [packs.rows[packs.offsets[k] : packs.offsets[k + 1]].tolist() for k in range(packs.count)]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_every_row_is_in_one_pack_and_no_pack_is_over_full(lengths: list[int]) -> None:
    packs = pack(np.array(lengths, dtype=np.int32), 64)
    assert sorted(row for rows in contents(packs) for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= 64 for rows in contents(packs))
    fewest = -(-sum(lengths) // 64)
    assert packs.count <= 11 / 9 * max(fewest, 1) + max(1, sum(length > 32 for length in lengths))


def test_best_fit_fills_what_first_fit_would_leave_open() -> None:
    packs = pack(np.array([6, 5, 4, 3, 2], dtype=np.int32), 10)
    assert sorted(sorted(rows) for rows in contents(packs)) == [[0, 2], [1, 3, 4]]  # 6 + 4 and 5 + 3 + 2


def test_natural_lengths_pack_to_over_99_percent() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 0.8, 20_000).astype(np.int32) + 8, 2048)
    packs = pack(lengths, 2048)
    assert lengths.sum() / (packs.count * 2048) > 0.99


def test_packs_are_the_same_each_time() -> None:
    lengths = np.random.default_rng(1).integers(1, 512, 5_000).astype(np.int32)
    first, second = pack(lengths, 512), pack(lengths.copy(), 512)
    assert first.rows.tolist() == second.rows.tolist()
    assert first.offsets.tolist() == second.offsets.tolist()


def test_the_trainers_collator_reads_a_stored_pack_as_separate_documents(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    prepared = make_prepared(tmp_path / "prepared", base, train_rows=6)
    rows = pa.ipc.open_stream((prepared / PreparedData.TRAIN).read_bytes()).read_all().to_pylist()
    lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int32)
    write_packs(prepared / PreparedData.PACKS, pack(lengths, 96), lengths)
    stored = pa.ipc.open_stream((prepared / PreparedData.PACKS).read_bytes()).read_all().to_pylist()
    first = stored[0]
    assert len(first["rows"]) > 1
    assert first["seq_lengths"] == [len(rows[row]["input_ids"]) for row in first["rows"]]
    packed = {
        "input_ids": [token for row in first["rows"] for token in rows[row]["input_ids"]],
        "labels": [label for row in first["rows"] for label in rows[row]["labels"]],
        "seq_lengths": first["seq_lengths"],
    }
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([packed])
    model = LlamaForCausalLM.from_pretrained(base, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        together = model(**{k: batch[k] for k in ("input_ids", "position_ids")}, use_cache=False).logits[0]
        apart = torch.cat([model(input_ids=torch.tensor([rows[row]["input_ids"]])).logits[0] for row in first["rows"]])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)
