"""How a config names a Hub dataset."""

import re
from dataclasses import dataclass
from typing import Final

from tuneline.contracts.errors import UserError

HUB_PREFIX: Final = "hub:"
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE: Final = re.compile(
    rf"hub:(?P<name>{_NAME}/{_NAME})(?:/(?P<config>[^/@#]+))?(?:@(?P<revision>[^@#]+))?(?:#(?P<split>[^@#]+))?"
)


@dataclass(frozen=True)
class HubReference:
    """A dataset on the Hub: `owner/name`, its configuration where it has several, a revision and a split."""

    name: str
    config: str | None
    revision: str | None
    split: str


def parse_hub(source: str, where: str) -> HubReference:
    """Take `hub:owner/name[/config][@revision][#split]` apart.

    Raises:
        UserError: it is not written so.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None:
        raise UserError.of(
            "not a name of a Hub dataset",
            where,
            "write hub:owner/name, hub:owner/name@revision or hub:owner/name#split",
        )
    return HubReference(match["name"], match["config"], match["revision"], match["split"] or "train")
