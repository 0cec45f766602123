"""The stage `merge`: base and adapter files in; one set of weights out, with a certificate that it is what was trained.

Everything is computed from files, a tensor at a time; no live model is ever merged (see `nf4.round_trip`).
An adapter trained on an NF4 base is fitted on D = dequantise(quantise(W)), so D + delta is what was trained, and
W + delta is another model: on a toy Llama it answers 5 to 8 % of the greedy tokens differently.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import torch

from training import shards
from training.certificate import certify
from training.errors import MergeFailed
from training.precision import use_granted_threads
from training.recipe import Recipe, base_tensor, merged_tensor, read_recipe
from tuneline.contracts.artifacts import MergedModel, PreparedData
from tuneline.contracts.jobs import Job, ProgressEvent, Reporter
from tuneline.contracts.store import read_record, write_whole


def merge(job: Job, report: Reporter) -> MergedModel:
    """Merge and certify.

    Raises:
        UserError: when the base holds no safetensors.
        MergeFailed: when the merged weights are not the trained model.
    """
    use_granted_threads()
    prepared = read_record(job.inputs["prepared"], PreparedData)
    recipe = read_recipe(job.inputs["base"], job.inputs["adapter"])
    folder = job.out_dir / MergedModel.MODEL
    size_bytes, shard_count = write_merged(recipe, folder, report)
    write_companions(recipe, job.inputs["prepared"] / PreparedData.TOKENIZER, folder)
    check_stop_tokens(folder, prepared.stop_token_ids)
    changed = check_tensors(recipe, folder)
    certificate = certify(job, recipe, folder, len(changed), report)
    write_whole(job.out_dir / MergedModel.CERTIFICATE, certificate.model_dump_json(indent=1))
    return MergedModel(
        bytes=size_bytes,
        shards=shard_count,
        dtype=str(recipe.dtype).removeprefix("torch."),
        template_sha256=prepared.template_sha256,
        stop_token_ids=prepared.stop_token_ids,
        certificate=certificate,
    )


def write_merged(recipe: Recipe, folder: Path, report: Reporter) -> tuple[int, int]:
    """Write the merged shards into an empty folder.

    Returns:
        Bytes of the tensors, and the number of shards.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layout = shards.plan_layout(recipe.places, recipe.dtype.itemsize)

    def written(done: int) -> None:
        report(ProgressEvent(done=done, planned=len(recipe.places), unit="tensors"))

    size_bytes = shards.write_model(folder, layout, lambda name: merged_tensor(recipe, name), written)
    return size_bytes, len(layout)


def write_companions(recipe: Recipe, tokenizer: Path, folder: Path) -> None:
    """Write what a server reads beside the weights: config, tokenizer, chat template and generation config."""
    config: dict[str, object] = json.loads((recipe.base / "config.json").read_text(encoding="utf-8"))
    for stale in ("torch_dtype", "_name_or_path", "quantization_config"):
        config.pop(stale, None)
    config["dtype"] = str(recipe.dtype).removeprefix("torch.")
    write_whole(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in sorted(tokenizer.iterdir()):
        shutil.copyfile(path, folder / path.name)


def check_stop_tokens(folder: Path, stop_token_ids: Collection[int]) -> None:
    """Compare the generation config that the server will read with the stop tokens that training taught.

    Raises:
        MergeFailed: when a stop token is missing: the model would answer without end.
    """
    generation: dict[str, object] = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    served = generation.get("eos_token_id")
    served_ids = set(served) if isinstance(served, list) else {served}
    if missing := sorted(set(stop_token_ids) - served_ids):
        raise MergeFailed(f"generation_config.json stops at {sorted(map(str, served_ids))} and misses {missing}")


def check_tensors(recipe: Recipe, folder: Path) -> frozenset[str]:
    """Read the merged files back and compare them with the base's: names, shapes, and which tensors differ.

    Returns:
        The tensors that differ from the base's.

    Raises:
        MergeFailed: when a tensor is missing, has another shape, changed although nothing was trained there, or did
            not change although something was.
    """
    written = shards.places_of(folder)
    reshaped = [name for name, place in recipe.places.items() if name in written and written[name].shape != place.shape]
    if reshaped or written.keys() != recipe.places.keys():
        raise MergeFailed(f"names or shapes differ from the base's: {_some(reshaped, written.keys() ^ recipe.places)}")
    changed = frozenset(
        name
        for name, place in written.items()
        if not torch.equal(shards.read_tensor(folder, place), base_tensor(recipe, name))
    )
    if touched := changed - recipe.may_change:
        raise MergeFailed(f"{len(touched)} tensors changed although nothing was trained there: {_some(touched)}")
    if lost := recipe.must_change - changed:
        raise MergeFailed(
            f"{len(lost)} of {len(recipe.must_change)} updates are lost in {recipe.dtype}, the merged tensors equal "
            f"the base's: {_some(lost)}; train longer or with a higher learning rate"
        )
    return changed


def _some(*names: Collection[str]) -> str:
    return ", ".join(sorted({name for group in names for name in group})[:5])
