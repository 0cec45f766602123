"""How a training's set-up and a merge fail."""


class MergeFailed(Exception):
    """The merged weights are not the trained model: names the figure that is off and its limit."""
