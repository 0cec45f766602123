"""What the receipt's checks say, held against the limits of the config, for the page and for the terminal."""

from dataclasses import dataclass
from typing import Literal

from tuneline.contracts.data_spec import DataLimitsSpec
from tuneline.contracts.receipt import Receipt, TokenCounts

Mark = Literal["good", "open", "bad", "none"]
"""Held, worth a look, beyond its limit, or a figure that is neither good nor bad."""


@dataclass(frozen=True)
class CheckLine:
    """A figure of the receipt, what it is held against, and how it does."""

    name: str
    figure: str
    limit: str
    mark: Mark


@dataclass(frozen=True)
class RoleLine:
    """A role's tokens and the share of them that is learned."""

    role: str
    tokens: int
    learned: int
    learned_share: float


def check_lines(receipt: Receipt, limits: DataLimitsSpec) -> tuple[CheckLine, ...]:
    """Hold the receipt's checks against the limits of the config."""
    checks, rows = receipt.checks, receipt.rows.train
    before = rows + checks.nothing_to_learn_rows
    stops: Mark = "good" if checks.ends_with_stop_share >= limits.min_stop_share else "bad"
    stable = receipt.template.prefix_stable
    return (
        CheckLine(
            "Rows that end with a learned stop token",
            per_cent(checks.ends_with_stop_share, 2),
            f"at least {per_cent(limits.min_stop_share, 2)}",
            stops,
        ),
        CheckLine(
            "Rows with two BOS tokens", f"{checks.two_bos_rows:,}", "none allowed", _none_or(checks.two_bos_rows, "bad")
        ),
        CheckLine("Learned tokens", per_cent(checks.learned_share, 1), "", "none"),
        _share_line(
            "Rows with nothing to learn, dropped",
            checks.nothing_to_learn_rows,
            before,
            limits.max_nothing_to_learn_share,
        ),
        _share_line("Rows that the template alters", checks.altered_rows, rows, limits.max_altered_share),
        CheckLine(
            "Rows whose answer begins inside a token",
            f"{checks.merged_border_rows:,}",
            "",
            _none_or(checks.merged_border_rows, "open"),
        ),
        CheckLine("Template is prefix-stable", "yes" if stable else "no", "", "good" if stable else "open"),
        CheckLine("Rows made one per answer", f"{checks.unrolled_rows:,}", "", _none_or(checks.unrolled_rows, "open")),
    )


def _none_or(rows: int, otherwise: Mark) -> Mark:
    return otherwise if rows else "good"


def _share_line(name: str, rows: int, of_rows: int, most: float) -> CheckLine:
    share = rows / of_rows if of_rows else 0.0
    mark: Mark = "bad" if share > most else _none_or(rows, "open")
    return CheckLine(name, f"{rows:,} ({per_cent(share, 2)})", f"at most {per_cent(most, 2)}", mark)


def role_lines(tokens: TokenCounts) -> tuple[RoleLine, ...]:
    """Give each role's tokens and what is learned of them, in the record's order."""
    return tuple(_role_line(role, count, tokens.learned_by_role.get(role, 0)) for role, count in tokens.by_role.items())


def _role_line(role: str, tokens: int, learned: int) -> RoleLine:
    return RoleLine(role, tokens, learned, learned / tokens if tokens else 0.0)


def per_cent(share: float, digits: int) -> str:
    """Write a share in per cent; one that is not whole is never rounded to 0 or to 100."""
    least = 10.0**-digits
    if share > 0 and 100 * share < least / 2:
        return f"under {least:.{digits}f} %"
    if share < 1 and 100 * share > 100 - least / 2:
        return f"over {100 - least:.{digits}f} %"
    return f"{100 * share:.{digits}f} %"
