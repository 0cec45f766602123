"""Write the quickstart's four data files from the phrasebook: `python recipe_data.py [FOLDER]`.

Every sentence pattern ("phrasing") stands in `phrasebook/*.yaml`. Some phrasings of each intent are never trained on.
The support desk's held-out file has only these: a model is scored on sentences whose wording it never saw. The base
tasks' held-out file has other messages of the trained phrasings: it asks whether a model still does what it did.
"""

import json
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

SEED = 20261124
TYPO_SHARE = 0.03
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One example: what a person wrote, the JSON to answer with, and the phrasing it was made from."""

    message: str
    answer: str
    phrasing: str


@dataclass(frozen=True)
class Phrasebook:
    """One desk's sentences and the words that fill them.

    `keys` maps the roles intent, cue and subject to the keys of the answer, in the answer's order. `subjects` and
    `cues` map each answer value to its wordings; a cue's wordings stand `before` or `after` the sentence.
    """

    name: str
    keys: dict[str, str]
    openers: list[str]
    closers: list[str]
    slots: dict[str, list[str]]
    subjects: dict[str, list[str]]
    cues: dict[str, dict[str, list[str]]]
    intents: dict[str, list[str]]

    @classmethod
    def read(cls, name: str) -> "Phrasebook":
        """Read `phrasebook/NAME.yaml`."""
        content: dict[str, Any] = yaml.safe_load((HERE / "phrasebook" / f"{name}.yaml").read_text(encoding="utf-8"))
        return cls(name=name, **content)


@dataclass(frozen=True)
class DataSet:
    """Which desks go into a pair of files, how many messages per phrasing, and what is new in the held-out ones."""

    name: str
    desks: tuple[str, ...]
    held_out_phrasings_per_intent: int
    train_rows_per_phrasing: int
    held_out_rows_per_phrasing: int
    new_phrasings_held_out: bool


DATA_SETS = (
    DataSet("support", ("support",), 3, 17, 14, True),
    DataSet("base_tasks", ("travel", "library", "kitchen", "home"), 2, 14, 2, False),
)


def split_phrasings(book: Phrasebook, held_out_per_intent: int) -> tuple[dict[str, str], dict[str, str]]:
    """Split a desk's phrasings at random into train and held out.

    Returns two maps from the phrasing's id, `desk/intent/number`, to its sentence pattern.
    """
    random = Random(f"{SEED}/split/{book.name}")
    train: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for intent, patterns in book.intents.items():
        chosen = random.sample(range(len(patterns)), held_out_per_intent)
        for number, pattern in enumerate(patterns):
            (held_out if number in chosen else train)[f"{book.name}/{intent}/{number:02d}"] = pattern
    return train, held_out


def make_rows(
    book: Phrasebook, phrasings: dict[str, str], rows_per_phrasing: int, random: Random, taken: Collection[str] = ()
) -> list[Row]:
    """Make `rows_per_phrasing` rows of every phrasing; no message is made twice, and none that is `taken`."""
    rows: dict[str, Row] = {}
    for phrasing, pattern in phrasings.items():
        target = len(rows) + rows_per_phrasing
        while len(rows) < target:
            row = make_row(book, phrasing, pattern, random)
            if row.message not in taken:
                rows.setdefault(row.message, row)
    return list(rows.values())


def make_row(book: Phrasebook, phrasing: str, pattern: str, random: Random) -> Row:
    """Draw subject, cue, greeting and slot words for one sentence pattern, and the answer that follows from them."""
    values = {
        "intent": phrasing.split("/")[1],
        "cue": random.choice(list(book.cues)),
        "subject": random.choice(list(book.subjects)),
    }
    words = {slot: random.choice(choices) for slot, choices in book.slots.items()}
    words[book.keys["subject"]] = random.choice(book.subjects[values["subject"]])
    sentence = with_typo(pattern, random) if random.random() < TYPO_SHARE else pattern
    message = frame(book, values["cue"], sentence.format(**words), random) + random.choice(book.closers).format(**words)
    answer = json.dumps({key: values[role] for role, key in book.keys.items()}, separators=(",", ":"))
    return Row(message, answer, phrasing)


def frame(book: Phrasebook, cue: str, sentence: str, random: Random) -> str:
    """Put the wording of a cue before the sentence or after it, and a greeting where none stands before it."""
    wordings = book.cues[cue]
    choices = [(lead, "") for lead in wordings["before"]] + [("", tail) for tail in wordings["after"]]
    lead, tail = random.choice(choices)
    return join(lead or random.choice(book.openers), sentence) + tail


def join(opener: str, sentence: str) -> str:
    """Write `sentence` after `opener`: small after a comma ("Hi, please ..."), else with a capital letter."""
    first, rest = sentence[0], sentence[1:]
    if not opener.rstrip().endswith((",", " but")):
        return opener + first.upper() + rest
    names_itself = sentence.startswith(("I ", "I'"))
    return opener + (first if names_itself else first.lower()) + rest


def with_typo(pattern: str, random: Random) -> str:
    """Swap two inner letters of one word of five letters or more, as a hurried writer does; slots stay whole."""
    words = pattern.split(" ")
    candidates = [index for index, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not candidates:
        return pattern
    index = random.choice(candidates)
    word = words[index]
    at = random.randrange(1, len(word) - 2)
    words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def build() -> Iterator[tuple[str, list[Row]]]:
    """Yield the name and the rows of each data file, in a seeded order."""
    for data_set in DATA_SETS:
        train_rows: list[Row] = []
        held_out_rows: list[Row] = []
        for desk in data_set.desks:
            book = Phrasebook.read(desk)
            train, held_out = split_phrasings(book, data_set.held_out_phrasings_per_intent)
            random = Random(f"{SEED}/rows/{desk}")
            learned = make_rows(book, train, data_set.train_rows_per_phrasing, random)
            asked = held_out if data_set.new_phrasings_held_out else train
            taken = {row.message for row in learned}
            train_rows += learned
            held_out_rows += make_rows(book, asked, data_set.held_out_rows_per_phrasing, random, taken)
        for name, rows in (("train", train_rows), ("heldout", held_out_rows)):
            Random(f"{SEED}/order/{data_set.name}/{name}").shuffle(rows)
            yield f"{data_set.name}_{name}.jsonl", rows


def write(folder: Path) -> None:
    """Write the four data files into `folder`, the same bytes each time."""
    for name, rows in build():
        lines = "".join(json.dumps(vars(row)) + "\n" for row in rows)
        (folder / name).write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
