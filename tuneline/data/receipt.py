"""The receipt, drawn up from what the steps noted."""

from collections.abc import Mapping

from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.fingerprint import sha256_text
from tuneline.contracts.receipt import MaskChecks, PackingLine, Receipt, RowCounts, TemplateFacts, TokenCounts
from tuneline.data.checks import stop_share
from tuneline.data.choosing import Chosen
from tuneline.data.ledger import Ledger
from tuneline.data.lengths import histogram, summarise
from tuneline.data.packing import Packs
from tuneline.data.render_chunk import ALTERED, MERGED, NOTHING_TO_LEARN, TWO_BOS, UNROLLED
from tuneline.data.rendering_pass import RenderedSet
from tuneline.data.tokenizer import ChatTokenizer


def make_receipt(
    chosen: Chosen,
    train: RenderedSet,
    evaluation: Mapping[str, RenderedSet],
    packs: Packs,
    ledger: Ledger,
    tokenizer: ChatTokenizer,
    spec: DataSpec,
) -> Receipt:
    """Draw up the receipt of a prepare stage."""
    tokens_per_character = int(train.lengths_before.sum()) / max(1, train.characters)
    return Receipt(
        kind=chosen.kind,
        sources=tuple(ledger.sources),
        steps=ledger.lines(tokens_per_character),
        rows=RowCounts(
            train=train.rows,
            held_out=evaluation["held_out"].rows,
            retention=evaluation["retention"].rows if "retention" in evaluation else 0,
        ),
        tokens=_tokens(train),
        lengths=summarise(train.lengths),
        length_histogram=histogram(train.lengths),
        length_limits=train.length_limits(spec.max_length_tokens),
        checks=_checks(train),
        leaks=chosen.leaks,
        packing=_packing(train, packs, spec.max_length_tokens),
        samples=tuple(train.samples),
        template=TemplateFacts(
            sha256=sha256_text(tokenizer.template),
            text=tokenizer.template,
            prefix_stable=not train.noted.rows.get(UNROLLED),
        ),
        seed=spec.seed,
    )


def _tokens(train: RenderedSet) -> TokenCounts:
    facts = train.facts
    return TokenCounts(
        train=int(train.lengths.sum()),
        learned=facts.learned,
        by_role=dict(facts.by_role),
        learned_by_role=dict(facts.learned_by_role),
    )


def _checks(train: RenderedSet) -> MaskChecks:
    return MaskChecks(
        ends_with_stop_share=stop_share(train),
        learned_share=train.facts.learned / int(train.lengths.sum()),
        nothing_to_learn_rows=train.refused.rows.get(NOTHING_TO_LEARN, 0),
        two_bos_rows=train.refused.rows.get(TWO_BOS, 0),
        merged_border_rows=train.noted.rows.get(MERGED, 0),
        altered_rows=train.noted.rows.get(ALTERED, 0),
        unrolled_rows=train.noted.rows.get(UNROLLED, 0),
    )


def _packing(train: RenderedSet, packs: Packs, capacity_tokens: int) -> PackingLine:
    tokens, room = int(train.lengths.sum()), packs.count * capacity_tokens
    return PackingLine(
        packs=packs.count,
        capacity_tokens=capacity_tokens,
        total_efficiency=tokens / room,
        learned_efficiency=train.facts.learned / room,
        unpacked_efficiency=tokens / (train.rows * int(train.lengths.max())),
    )
