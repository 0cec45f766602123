"""Shapes of models that are not on this disk."""

import difflib
from pathlib import Path

import yaml

from tuneline.contracts.errors import UserError
from tuneline.planning.model_shape import ModelShape, shape_from_config

TABLE = Path(__file__).with_name("known_models.yaml")


def shape_of_known(name: str) -> ModelShape:
    """Return the shape of a Hub model from the table that tuneline ships.

    Raises:
        UserError: the name is not in the table.
    """
    entries = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    configs = {known: entry["config"] for entry in entries for known in entry["names"]}
    if name not in configs:
        close = difflib.get_close_matches(name, configs, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError.of(
            "the model is not on this disk, and its shape is not one that tuneline ships",
            f"model.base {name}",
            f"{hint}download it first (`hf download {name}`), or name a folder with its config.json",
        )
    return shape_from_config(name, configs[name])
