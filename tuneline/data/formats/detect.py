"""Which format rows of given columns are in, and in which columns its parts stand."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tuneline.contracts.data_spec import ColumnRole
from tuneline.data.formats.cells import nearest
from tuneline.data.formats.template import PLAIN, PromptTemplate, parse_template

Roles = tuple[tuple[ColumnRole, str], ...]
"""`data.columns` as a hashable value."""

TURNS: Final = ("messages", "conversations", "conversation")
"""Columns that hold a list of turns."""
OWN_PAIR: Final = (("prompt", "completion"),)
KNOWN_PAIRS: Final = (
    *OWN_PAIR,
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
    ("instruction", "response"),
)
TEMPLATED_PAIRS: Final = (("instruction", "output"), *KNOWN_PAIRS)
"""A prompt template says how an Alpaca row's columns make a prompt, so such a row is prompt and completion then."""
MISSPELT_SIMILARITY: Final = 0.8
"""A column that `data.columns` names and the row lacks is taken for a slip of the pen when another is this like it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A format, the columns of its parts (None for a part that the row does not have), and the parsed template."""

    format: str
    template: PromptTemplate
    prompt: str | None = None
    completion: str | None = None
    system: str | None = None
    messages: str | None = None
    tools: str | None = None
    text: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None

    @property
    def has_prompt(self) -> bool:
        """Whether a user message can be made of columns of text."""
        return self.prompt is not None or not self.template.needs_prompt


@lru_cache(maxsize=1024)
def detect_format(columns: tuple[str, ...], roles: Roles = (), prompt_template: str = PLAIN) -> str | None:
    """Name the format of rows with these columns, None when it is none that is known.

    A column of turns that is not mapped tells its format by its name: `messages` or `sharegpt` (`conversations`).
    """
    layout = find_layout(columns, "auto", roles, prompt_template)
    return None if layout is None else layout.format


@lru_cache(maxsize=1024)
def find_layout(columns: tuple[str, ...], format_: str, roles: Roles, prompt_template: str) -> Layout | None:
    """Find the parts of a format, or of the first one that fits when `format_` is `auto`; None when they are not there.

    `roles` go before the formats' own names: a format fits only if it has a use for each column that they name.
    """
    finder = _Finder(columns, dict(roles), parse_template(prompt_template), format_ == "auto")
    if finder.misspelt():
        return None
    if format_ != "auto":
        return finder.layout(format_)
    order = ["preference", "unpaired_preference", "messages", "alpaca", "prompt_completion", "text"]
    if prompt_template != PLAIN:
        order.remove("alpaca")
    layouts = [layout for name in order if (layout := finder.layout(name)) and finder.uses_all_roles(layout)]
    return layouts[0] if layouts else None


class _Finder:
    """The columns of a row, seen through `data.columns`."""

    def __init__(
        self, columns: tuple[str, ...], roles: dict[ColumnRole, str], template: PromptTemplate, automatic: bool
    ) -> None:
        self.columns, self.roles, self.template, self.automatic = columns, roles, template, automatic

    def misspelt(self) -> tuple[ColumnRole, ...]:
        """List the roles whose column is absent while one with nearly its name is there."""
        free = [column for column in self.columns if column not in self.roles.values()]
        absent = {role: column for role, column in self.roles.items() if column not in self.columns}
        return tuple(role for role, column in absent.items() if nearest(column, free, MISSPELT_SIMILARITY))

    def uses_all_roles(self, layout: Layout) -> bool:
        """Whether every mapped column that is there has a part in the layout; `system` and `tools` go with any."""
        main = {role: column for role, column in self.roles.items() if role not in ("system", "tools")}
        return all(getattr(layout, role) == column for role, column in main.items() if column in self.columns)

    def layout(self, name: str) -> Layout | None:
        """Find the parts of one format, None when one that it needs is not there."""
        parts = {
            "preference": self._preference,
            "unpaired_preference": self._unpaired,
            "messages": self._turns,
            "sharegpt": self._turns,
            "alpaca": self._alpaca,
            "prompt_completion": self._prompt_completion,
            "text": self._text,
        }[name]()
        if parts is None:
            return None
        if self.automatic and parts.get("messages") in ("conversations", "conversation") and name == "messages":
            name = "sharegpt"
        if name != "text":
            parts |= {"system": self._find("system", "system"), "tools": self._find("tools", "tools")}
        return Layout(name, self.template, **parts)

    def _find(self, role: ColumnRole, *own: str) -> str | None:
        named = self.roles.get(role)
        return next((column for column in (own if named is None else (named,)) if column in self.columns), None)

    def _preference(self) -> dict[str, str | None] | None:
        chosen, rejected = self._find("chosen", "chosen"), self._find("rejected", "rejected")
        if chosen is None or rejected is None:
            return None
        prompt = self._find("prompt", "prompt")
        turns = self._find("messages", *TURNS) if prompt is None else None
        return {"chosen": chosen, "rejected": rejected, "prompt": prompt, "messages": turns}

    def _unpaired(self) -> dict[str, str | None] | None:
        label = self._find("label", "label")
        if label is None:
            return None
        parts = self._turns()
        if parts is None and not self._is_alpaca():
            parts = self._prompt_completion()
        return None if parts is None else {"label": label, **parts}

    def _turns(self) -> dict[str, str | None] | None:
        turns = self._find("messages", *TURNS)
        return None if turns is None else {"messages": turns}

    def _is_alpaca(self) -> bool:
        return self.automatic and self.template.is_plain and self._alpaca() is not None

    def _alpaca(self) -> dict[str, str | None] | None:
        prompt, completion = self._find("prompt", "instruction"), self._find("completion", "output")
        if prompt is None or completion is None or (self.automatic and prompt != "instruction"):
            return None
        return {"prompt": prompt, "completion": completion}

    def _prompt_completion(self) -> dict[str, str | None] | None:
        pairs = OWN_PAIR if not self.automatic else KNOWN_PAIRS if self.template.is_plain else TEMPLATED_PAIRS
        for own_prompt, own_completion in pairs:
            prompt, completion = self._find("prompt", own_prompt), self._find("completion", own_completion)
            if completion is not None and (prompt is not None or self._template_stands_alone()):
                return {"prompt": prompt, "completion": completion}
        return None

    def _template_stands_alone(self) -> bool:
        """Whether the template makes the user message without a prompt column."""
        template = self.template
        return not template.needs_prompt and (not self.automatic or all(c in self.columns for c in template.columns))

    def _text(self) -> dict[str, str | None] | None:
        text = self._find("text", "text")
        return None if text is None else {"text": text}
