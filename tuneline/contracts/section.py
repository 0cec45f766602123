"""What the sections of a config have in common."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Section(BaseModel):
    """Base of the sections: unknown keys are refused, values never change, field docstrings become schema text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


def flat_values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every setting as `section.key` and its value, in JSON's types."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from flat_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def given_keys(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yield the keys that were set rather than left to their defaults."""
    for name in section.model_fields_set:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from given_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
