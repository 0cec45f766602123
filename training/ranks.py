"""What the ranks of a training agree on; with one rank, nothing is asked."""

import torch


def any_rank(flag: bool, device: torch.device | str, ranks: int) -> bool:
    """Agree on a flag: a rank that stops alone leaves the others waiting in a collective for ever."""
    if ranks == 1:
        return flag
    shared = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return bool(shared.item())


def summed(values: torch.Tensor, device: torch.device | str, ranks: int) -> torch.Tensor:
    """Add up a tensor over the ranks."""
    if ranks == 1:
        return values
    shared = values.to(device)
    torch.distributed.all_reduce(shared)
    return shared.cpu()
