"""How each tensor of the merged model is made from files, and which ones may differ from the base's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from training import experts, nf4
from training.errors import MergeFailed
from training.precision import training_device
from training.shards import TensorPlace, places_of, read_tensor
from training.updates import Update, read_updates
from training.weights import AS_TRAINED, AsTrained
from tuneline.contracts.artifacts import Adapter
from tuneline.contracts.store import read_record


@dataclass(frozen=True)
class Recipe:
    """Sources of the merged model."""

    base: Path
    dtype: torch.dtype
    """Of the merged weights; also that in which the base was loaded for training."""
    places: Mapping[str, TensorPlace]
    """Tensors of the base that the merged model has too."""
    nf4_weights: frozenset[str] = frozenset()
    """Weights that training computed with in NF4."""
    updates: Mapping[str, Update] | None = None
    """What is added, by name of the weight; None when every weight was trained."""
    pairs: int = 0
    """Pairs of factors that the updates are; a pair for fused experts is many updates."""
    remainder_dtype: torch.dtype | None = None
    """Number format of what PiSSA left of the base; None without PiSSA."""
    trained: Path | None = None
    """Folder of the trained weights when every weight was trained."""

    @property
    def may_change(self) -> frozenset[str]:
        """Tensors that may differ from the base's."""
        if self.updates is None:
            return frozenset(self.places)
        return self.nf4_weights | self.updates.keys()

    @property
    def must_change(self) -> frozenset[str]:
        """Tensors that differ, or a training was lost."""
        if self.updates is None:
            return frozenset()
        return frozenset(name for name, update in self.updates.items() if not update.is_zero)


def read_recipe(base: Path, adapter: Path) -> Recipe:
    """Read from the artifact of `train` how its weights join the base's.

    Raises:
        UserError: when the base holds no safetensors.
        MergeFailed: when an update has no weight in the base to be added to, or their shapes differ.
    """
    as_trained = AsTrained.model_validate_json((adapter / AS_TRAINED).read_text(encoding="utf-8"))
    dtype: torch.dtype = getattr(torch, as_trained.dtype)
    places = places_of(base)
    folder = adapter / Adapter.WEIGHTS
    if read_record(adapter, Adapter).method == "full":
        return Recipe(base, dtype, _trained_places(base, places, folder), trained=folder)
    read = read_updates(folder, as_trained)
    updates = {**read.modules, **experts.in_files(read.fused, base, places)}
    _check_fit(updates, places)
    return Recipe(
        base,
        dtype,
        places,
        nf4_weights=frozenset(f"{module}.weight" for module in as_trained.nf4_modules),
        updates=updates,
        pairs=len(read.modules) + len(read.fused),
        remainder_dtype=getattr(torch, as_trained.remainder_dtype) if as_trained.remainder_dtype else None,
    )


def base_tensor(recipe: Recipe, name: str) -> torch.Tensor:
    """Read a tensor of the base in the dtype in which training loaded it."""
    return _in_dtype(read_tensor(recipe.base, recipe.places[name]), recipe.dtype)


def merged_tensor(recipe: Recipe, name: str) -> torch.Tensor:
    """Make a tensor of the merged model: sums in float32, cast once.

    Raises:
        MergeFailed: when a value does not fit the dtype (float16 ends at 65504).
    """
    if recipe.trained is not None:
        weight = read_tensor(recipe.trained, places_of(recipe.trained)[name])
    else:
        weight = base_tensor(recipe, name)
        if name in recipe.nf4_weights:
            # On the device of the training: backends may round a scale differently.
            weight = nf4.round_trip(weight.to(training_device())).cpu()
        update = (recipe.updates or {}).get(name)
        if update is not None:
            weight = update.added_to(weight)
    merged = _in_dtype(weight, recipe.dtype)
    if merged.is_floating_point() and not merged.isfinite().all():
        raise MergeFailed(f"{name} does not fit {recipe.dtype}: set model.dtype to bfloat16")
    return merged


def _in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_fit(updates: Mapping[str, Update], places: Mapping[str, TensorPlace]) -> None:
    homeless = sorted(updates.keys() - places.keys())
    if homeless:
        raise MergeFailed(f"{len(homeless)} updates have no weight in the base's files: {', '.join(homeless[:5])}")
    for name, update in updates.items():
        if places[name].shape != update.shape:
            raise MergeFailed(f"{name} is {places[name].shape} in the base and {update.shape} in the adapter")


def _trained_places(base: Path, places: Mapping[str, TensorPlace], folder: Path) -> dict[str, TensorPlace]:
    """Keep the tensors that training saved: some bases' files hold a copy of tied embeddings, and ours do not."""
    trained = places_of(folder)
    config: dict[str, object] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    missing = places.keys() - trained.keys()
    if trained.keys() - places.keys() or (missing and not config.get("tie_word_embeddings")):
        differing = sorted(places.keys() ^ trained.keys())
        raise MergeFailed(f"the trained weights are not named as the base's: {', '.join(differing[:5])}")
    return {name: place for name, place in places.items() if name in trained}
