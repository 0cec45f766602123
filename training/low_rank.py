"""An adapted linear module in one autograd node, for a CPU under 16-bit autocast.

peft 0.21 casts the input to float32 and back for the low-rank side, scales and adds in passes of their own, and keeps
each result for the backward pass: with AMX the products are so quick that this was half of a layer's time. Here the
low-rank product is added inside the second matrix product, forwards and backwards. Sums are rounded once less than
peft's; the parameters stay peft's.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn

ADAPTER = "default"


class _AdaptedLinear(torch.autograd.Function):
    """y = x W' + s (x A') B', with a frozen W."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Multiply in the weight's dtype; `inputs` has shape (..., in), the factors (rank, in) and (out, rank)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(weight.dtype)
        down, up = down.to(weight.dtype), up.to(weight.dtype)
        narrow = rows @ down.T
        outputs = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        outputs.addmm_(narrow, up.T, alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, narrow)
        ctx.scale, ctx.shape, ctx.dtype = scale, inputs.shape, inputs.dtype
        return outputs.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of the input and of both factors."""
        rows, weight, down, up, narrow = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0]).to(weight.dtype)
        to_narrow = (gradient @ up).mul_(ctx.scale)
        to_inputs = None
        if ctx.needs_input_grad[0]:
            to_inputs = (gradient @ weight).addmm_(to_narrow, down).view(ctx.shape).to(ctx.dtype)
        to_up = (gradient.T @ narrow).float().mul_(ctx.scale)
        return to_inputs, None, None, (to_narrow.T @ rows).float(), to_up, None


def fuse(model: nn.Module) -> int:
    """Give the plain LoRA modules of a model the forward pass above; return how many.

    Left to peft: quantised weights, DoRA, dropout, and every call with the adapter off or merged.
    """
    fused = 0
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and list(layer.lora_A) == [ADAPTER]
        and not layer.lora_variant
        and not layer.lora_bias[ADAPTER]
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
    )


def _forward(layer: Any, inputs: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    base = layer.base_layer
    if args or options or layer.disable_adapters or layer.merged or not torch.is_autocast_enabled("cpu"):
        outputs: torch.Tensor = Linear.forward(layer, inputs, *args, **options)
    else:
        factors = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        outputs = _AdaptedLinear.apply(inputs, base.weight, base.bias, *factors, layer.scaling[ADAPTER])  # type: ignore[no-untyped-call]
    return outputs
