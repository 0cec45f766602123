"""Attention for training on a CPU: torch's own kernel, fed with float32, one document of a joined row at a time.

torch 2.13's CPU kernel is quicker in float32 than in bfloat16 up to rows of 900 tokens (17 against 38 ms for 8 rows of
190 tokens, 8 heads of 32, an Xeon core with AMX). Document by document it needs no mask, so that rows can be put end to
end without padding; with the mask that transformers makes for them the time would grow with the square of their sum.
"""

from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from training.precision import Precision
from tuneline.contracts.errors import UserError

BY_DOCUMENT = "sdpa_by_document"
BOUNDS_INSTEAD = torch.empty(0)
"""In place of a mask: attention must be given the bounds of the documents, or they would see each other."""


def training_attention(chosen: str, precision: Precision) -> str:
    """Name the attention implementation to train with; only `sdpa` on a CPU is replaced."""
    return BY_DOCUMENT if chosen == "sdpa" and precision.device == "cpu" else chosen


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend in float32 and answer in the dtype of `query`, shape (rows, heads, tokens, width).

    Args:
        module: of the model.
        query: as `sdpa_attention_forward` takes it, and so are key, value and options.
        key: may have fewer heads.
        value: may have fewer heads.
        mask: absent where plain causal attention is meant.
        cu_seq_lens_q: where the documents of a joined row begin, and where the last one ends.

    Raises:
        UserError: the model's code keeps the bounds of documents from its attention.
    """
    if mask is BOUNDS_INSTEAD:
        if cu_seq_lens_q is None:
            what = f"{type(module).__name__} does not hear where the documents of a joined row begin"
            raise UserError.of(what, "training.packing", "set it to off")
        mask = None
    with torch.autocast("cpu", enabled=False):
        triple = (query.float(), key.float(), value.float())
        if cu_seq_lens_q is None:
            attended, _ = sdpa_attention_forward(module, *triple, mask, **options)
        else:
            attended = _document_by_document(triple, mask, cu_seq_lens_q.tolist(), options)
    return attended.to(query.dtype), None


def _document_by_document(
    triple: tuple[torch.Tensor, ...], mask: torch.Tensor | None, bounds: list[int], options: dict[str, Any]
) -> torch.Tensor:
    lengths = [end - start for start, end in pairwise(bounds)]
    documents = zip(*(torch.split(tensor, lengths, dim=2) for tensor in triple), strict=True)
    attended = []
    for (query, key, value), (start, end) in zip(documents, pairwise(bounds), strict=True):
        part = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[..., start:end, start:end],
            dropout_p=options.get("dropout", 0.0),
            is_causal=mask is None,
            scale=options.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        attended.append(part.transpose(1, 2))
    return torch.cat(attended, dim=1)


def _mask_where_needed(**options: Any) -> torch.Tensor | None:
    """Make no mask where each document attends causally to itself alone: by `cu_seq_lens_q`, or padded on the right.

    What padding computes is never looked at, and no token to its left attends to it.
    """
    padding = options.get("attention_mask")
    padded_on_the_right = padding is None or bool(padding[:, 0].all())
    plain = options.get("local_size") is None and not options.get("use_vmap")
    if not (plain and padded_on_the_right and options["q_length"] == options["kv_length"]):
        made: torch.Tensor | None = sdpa_mask(**options)
        return made
    return None if options.get("allow_is_causal_skip", True) else BOUNDS_INSTEAD


AttentionInterface.register(BY_DOCUMENT, _attend_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, _mask_where_needed)
