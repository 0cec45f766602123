import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_model import make_tiny_base
from torch.nn import functional
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from training import low_rank
from training.attention import BY_DOCUMENT
from training.head import cross_entropy_sum, learned_positions, loss_at_learned_positions
from training.micro_batches import StepCollator, cut
from tuneline.contracts.errors import UserError

LENGTHS = [23, 11, 31, 7, 1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def load(base, attention):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention)


def rows_of(lengths=LENGTHS, seed=0):
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(5, 300, (length,), generator=draw).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return rows


lengths_of_rows = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths=lengths_of_rows, budget=st.integers(1, 200), joined=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_cut_has_every_row_once_and_never_exceeds_the_budget(lengths, budget, joined):
    parts = cut(lengths, budget, joined=joined)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        tokens = [lengths[row] for row in part]
        computed = sum(tokens) if joined else len(tokens) * max(tokens)
        assert computed <= budget or len(part) == 1
    assert max(lengths) in {lengths[row] for row in parts[0]}


@given(lengths=lengths_of_rows, budget=st.integers(60, 200), joined=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_budget_for_so_many_of_the_longest_rows_needs_no_more_micro_batches_than_a_cut_by_rows(
    lengths, budget, joined
):
    rows = budget // max(lengths)
    assert len(cut(lengths, rows * max(lengths), joined=joined)) <= -(-len(lengths) // rows)


def test_short_rows_go_together_where_a_cut_by_rows_would_part_them():
    lengths = [100, 90, 30, 20, 20, 20, 10, 10]
    assert cut(lengths, 200, joined=True) == [[0, 1, 6], [2, 3, 4, 5, 7]]
    assert cut(lengths, 200, joined=False) == [[0, 1], [2, 3, 4, 5, 6, 7]]


def logits_of_documents(model, micro_batches, lengths):
    """The rows are told apart by their lengths."""
    found = {}
    for micro_batch in micro_batches:
        inputs = {name: value for name, value in micro_batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits.detach()
        if "cu_seq_lens_q" in micro_batch:
            sizes = micro_batch["cu_seq_lens_q"].diff().tolist()
            found |= dict(zip(sizes, logits[0].split(sizes), strict=True))
        else:
            sizes = micro_batch["attention_mask"].sum(1).tolist()
            found |= {size: row[:size] for size, row in zip(sizes, logits, strict=True)}
    return [found[length] for length in lengths]


def sliding(attention):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=320, num_key_value_heads=2, sliding_window=5, initializer_range=0.2, **sizes)
    model = MistralForCausalLM(config)
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("kind", ["causal", "sliding window"])
@pytest.mark.parametrize("joined", [True, False])
def test_every_document_has_the_logits_that_it_has_alone(base, kind, joined):
    plain, ours = (load(base, name) if kind == "causal" else sliding(name) for name in ("sdpa", BY_DOCUMENT))
    rows = rows_of()
    alone = [plain(torch.tensor([row["input_ids"]]), use_cache=False).logits[0].detach() for row in rows]
    micro_batches = StepCollator(0, budget_tokens=64, joined=joined)(rows)
    assert len(micro_batches) == 2
    for found, expected in zip(logits_of_documents(ours, micro_batches, LENGTHS), alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_neighbour_in_a_joined_row_changes_nothing(base):
    model = load(base, BY_DOCUMENT)
    first, second = rows_of([12, 9], seed=1), rows_of([12, 9], seed=2)
    second[0] = first[0]
    logits = [logits_of_documents(model, StepCollator(0, 64, joined=True)(rows), [12, 9]) for rows in (first, second)]
    assert torch.equal(logits[0][0], logits[1][0])
    assert not torch.equal(logits[0][1], logits[1][1])


def test_a_model_that_keeps_the_bounds_of_documents_from_its_attention_is_refused(base):
    (micro_batch,) = StepCollator(0, 200, joined=True)(rows_of())
    with pytest.raises(UserError, match=r"training\.packing: set it to off|documents of a joined row"):
        load(base, BY_DOCUMENT)(
            input_ids=micro_batch["input_ids"], position_ids=micro_batch["position_ids"], use_cache=False
        )


@pytest.mark.parametrize("joined", [True, False])
def test_the_loss_and_its_gradient_are_those_of_all_logits(base, joined):
    (micro_batch,) = StepCollator(0, 200, joined=joined)(rows_of())
    model = load(base, BY_DOCUMENT)
    inputs = {name: value for name, value in micro_batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits
    targets = functional.pad(micro_batch["labels"][:, 1:], (0, 1), value=-100)
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    found = loss_at_learned_positions(model, model.get_output_embeddings(), micro_batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    weights = list(model.parameters())
    ours, theirs = torch.autograd.grad(3 * found, weights), torch.autograd.grad(3 * expected, weights)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert model.get_output_embeddings()._forward_pre_hooks == {}


def test_learned_positions_are_those_before_a_learned_token_and_never_cross_documents():
    rows = [{"input_ids": [5, 6, 7], "labels": [5, -100, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    (joined,) = StepCollator(0, 10, joined=True)(rows)
    assert learned_positions(joined).tolist() == [[False, True, False, True, False]]
    (padded,) = StepCollator(0, 10, joined=False)(rows)
    assert learned_positions(padded).tolist() == [[False, True, False], [True, False, False]]


def test_cross_entropies_of_many_slices_and_of_none(monkeypatch):
    monkeypatch.setattr("training.head.SLICE_ELEMENTS", 70)
    torch.manual_seed(0)
    logits, targets = torch.randn(23, 30, requires_grad=True), torch.randint(0, 30, (23,))
    total, expected = cross_entropy_sum(logits, targets), functional.cross_entropy(logits, targets, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = torch.autograd.grad(total, logits)[0], torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    nothing = torch.zeros(0, 30, requires_grad=True)
    cross_entropy_sum(nothing, targets[:0]).backward()
    assert nothing.grad.shape == (0, 30)


def adapted(base, **options):
    torch.manual_seed(0)
    frozen = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = get_peft_model(frozen, config, autocast_adapter_dtype=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def loss_and_gradients(model, autocast=True):
    ids = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_fused_adapters_have_the_loss_and_the_gradients_of_pefts(base):
    theirs = adapted(base)
    ours = copy.deepcopy(theirs)
    assert low_rank.fuse(ours) == 14
    _, exact = loss_and_gradients(copy.deepcopy(theirs).float(), autocast=False)
    (loss, gradients), (expected_loss, expected) = loss_and_gradients(ours), loss_and_gradients(theirs)
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert gradients.keys() == exact.keys() and len(exact) == 28
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}

    def error(found):
        return sum(float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact) / len(exact)

    assert error(gradients) < 1.05 * error(expected) < 0.05  # bfloat16 has 8 bits


def test_a_fused_adapter_in_float32_is_exact():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 6, requires_grad=True), torch.randn(7, 6)
    down, up = torch.randn(3, 6, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    ours = low_rank._AdaptedLinear.apply(x, weight, None, down, up, 0.5)
    theirs = x @ weight.T + 0.5 * x @ down.T @ up.T
    torch.testing.assert_close(ours, theirs)
    seed = torch.randn_like(theirs)
    found, expected = (torch.autograd.grad(y, (x, down, up), seed) for y in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_are_more_than_two_products_are_left_to_peft(base, options):
    assert low_rank.fuse(adapted(base, **options)) == 0


def test_a_fused_adapter_can_be_switched_off(base):
    model = adapted(base)
    low_rank.fuse(model)
    with model.disable_adapter():
        off, _ = loss_and_gradients_of_nothing(model)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert off == loss_and_gradients_of_nothing(plain)[0]


def loss_and_gradients_of_nothing(model):
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=ids, labels=ids, use_cache=False).loss.item(), {}
