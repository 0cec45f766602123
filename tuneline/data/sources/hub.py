"""Hub datasets: downloaded once, read from the local cache after that, also without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tuneline.contracts.errors import UserError
from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.resolve import SourceFile

COMMIT_SECONDS: Final = 10.0
"""Longest wait for the Hub's answer which commit a revision is."""


def read_hub(file: SourceFile) -> Iterator[SourceRow | UnreadableRow]:
    """Read a Hub dataset's split; a row is named by its index.

    Raises:
        UserError: no such dataset, configuration, revision or split, or neither the Hub nor a cached copy is there.
    """
    import datasets

    from tuneline.data.sources.columnar import BATCH_ROWS, rows_of

    commit = hub_commit(file, file.label)
    try:
        dataset = datasets.load_dataset(file.name, file.config, split=file.split, revision=commit or file.revision)
    except Exception as error:  # the exceptions of five libraries, with one meaning: it cannot be had
        raise _not_had(file, error, file.label) from error
    if commit is None:
        _check_cached(dataset, file)
    for first, table in enumerate(dataset.with_format("arrow").iter(batch_size=BATCH_ROWS)):
        yield from rows_of(table, file.label, first * BATCH_ROWS)


def hub_commit(file: SourceFile, where: str) -> str | None:
    """Return the commit of the dataset's revision, or None where the Hub does not answer.

    Raises:
        UserError: the Hub answers that there is no such dataset or revision, or that it needs a login.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi().dataset_info(file.name, revision=file.revision, timeout=COMMIT_SECONDS)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise _not_had(file, error, where) from error
    except Exception:  # offline by choice or by fault: a cached copy can be read all the same
        return None
    return str(info.sha)


def _check_cached(dataset: Any, file: SourceFile) -> None:
    """Refuse a cached copy that is not known to be the revision: without the Hub, `datasets` takes its latest one."""
    commit = Path(dataset.cache_files[0]["filename"]).parent.name
    if file.revision not in (None, commit):
        what = f"the Hub does not answer, and the cached copy is of commit {commit}, which may not be {file.revision}"
        raise UserError.of(what, file.label, f"name @{commit}, or go online once")


def _not_had(file: SourceFile, error: Exception, where: str) -> UserError:
    first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
    return UserError.of(
        f"the Hub dataset cannot be had: {type(error).__name__}: {first_line}",
        where,
        "check name, revision and split, log in with `hf auth login`, or download it and name the file",
    )
