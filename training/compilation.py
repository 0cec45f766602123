"""`training.compile`: torch compiles a layer once, and all layers of its kind use the result."""

import shutil
from typing import Any

from tuneline.contracts.errors import UserError


def compile_layers(model: Any, device: str) -> None:
    """Have every layer of a model compiled, for any number of tokens, when it is first run.

    Layer by layer, since a whole model takes as many times longer as it has layers. In place: names of weights stay.

    Raises:
        UserError: on a CPU without a C++ compiler, which torch needs there.
    """
    if device == "cpu" and not shutil.which("g++"):
        raise UserError.of("torch compiles for a CPU with g++, which is missing", "training.compile", "install g++")
    kinds = model._no_split_modules
    for module in model.modules():
        if type(module).__name__ in kinds:
            module.compile(dynamic=True)
