"""Hub datasets: downloaded once, read from the local cache after that, also without a network."""

from collections.abc import Iterator

from tuneline.contracts.errors import UserError
from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.resolve import SourceFile

COMMIT_SECONDS = 10.0
"""Longest wait for the Hub's answer which commit a revision is."""


def read_hub(file: SourceFile) -> Iterator[SourceRow | UnreadableRow]:
    """Read a Hub dataset's split; a row is named by its index.

    Raises:
        UserError: no such dataset, configuration, revision or split, or neither the Hub nor a cached copy is there.
    """
    import datasets

    from tuneline.data.sources.columnar import BATCH_ROWS, rows_of

    try:
        dataset = datasets.load_dataset(file.name, file.config, split=file.split, revision=file.revision)
    except Exception as error:  # the exceptions of five libraries, with one meaning: it cannot be had
        raise _not_had(file, error) from error
    for first, table in enumerate(dataset.with_format("arrow").iter(batch_size=BATCH_ROWS)):
        yield from rows_of(table, file.label, first * BATCH_ROWS)


def hub_commit(file: SourceFile, where: str) -> str:
    """Return the commit of the dataset's revision, or the revision as given where the Hub does not answer.

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
        return file.revision or "main"
    return str(info.sha)


def _not_had(file: SourceFile, error: Exception, where: str = "") -> UserError:
    first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
    return UserError.of(
        f"the Hub dataset cannot be had: {type(error).__name__}: {first_line}",
        where or file.label,
        "check name, revision and split, log in with `hf auth login`, or download it and name the file",
    )
