"""Parameter groups: which trainable parameters decay, and which move faster (LoRA+)."""

from typing import Any

UP = ".lora_B."
MAGNITUDE = ".lora_magnitude_vector."


def split_groups(optimizer: Any, model: Any, up_ratio: float | None) -> None:
    """Regroup the parameters of an optimizer that has made no step.

    DoRA's magnitudes do not decay: transformers only knows the names of norms and biases, and decay would shrink every
    adapted weight. The up factors get their own rate (LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354);
    magnitudes keep the common one. The first group's rate stays the common one, which is what is logged.

    Args:
        optimizer: as transformers made it.
        model: the model whose parameters it has.
        up_ratio: rate of the up factors over the common one; None leaves them together.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in list(optimizer.param_groups):
        changes: list[tuple[str, dict[str, float]]] = [(MAGNITUDE, {"weight_decay": 0.0})]
        if up_ratio is not None:
            changes.append((UP, {"lr": group["lr"] * up_ratio}))
        for part, options in changes:
            _move_out(optimizer, group, names, part, options)


def _move_out(
    optimizer: Any, group: dict[str, Any], names: dict[int, str], part: str, options: dict[str, float]
) -> None:
    """Give the parameters of a group whose names contain `part` a group of their own."""
    chosen = [parameter for parameter in group["params"] if part in names[id(parameter)]]
    if not chosen or all(group[key] == value for key, value in options.items()):
        return
    moved = {id(parameter) for parameter in chosen}
    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
    optimizer.add_param_group({**group, **options, "params": chosen})
