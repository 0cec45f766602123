"""Hours to money, from a price book with provenance in every row."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from tuneline.contracts.artifacts import Estimate, Record

PRICE_BOOK = Path(__file__).with_name("prices.yaml")


class Price(Record):
    """What a provider asked for one GPU for one hour on a day."""

    gpu: str
    provider: str
    price_usd_per_hour: float
    term: str
    as_of: date
    source: str

    def __str__(self) -> str:
        """State the row with its provenance."""
        return f"{self.provider}, {self.term}, as of {self.as_of.isoformat()} ({self.source})"


@dataclass(frozen=True)
class Cost:
    """Money of a run: `usd` spans the cheapest to the dearest row; `price` is the row behind the expected figure."""

    usd: Estimate
    price: Price


def price_book(path: Path = PRICE_BOOK) -> tuple[Price, ...]:
    """Read the price book."""
    return TypeAdapter(tuple[Price, ...]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))


def cost_of(hours: Estimate, gpu: str, gpus: int, prices: tuple[Price, ...]) -> Cost | None:
    """Price a run at the median row of its GPU; the interval takes the cheapest and the dearest.

    Returns:
        None when the book has no row for the GPU.
    """
    rows = sorted((row for row in prices if row.gpu == gpu), key=lambda row: row.price_usd_per_hour)
    if not rows:
        return None
    median = rows[(len(rows) - 1) // 2]
    usd = Estimate(
        low=hours.low * gpus * rows[0].price_usd_per_hour,
        expected=hours.expected * gpus * median.price_usd_per_hour,
        high=hours.high * gpus * rows[-1].price_usd_per_hour,
    )
    return Cost(usd, median)
