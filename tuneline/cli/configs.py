"""Commands about configs: write one, check one, describe them all."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from tuneline.cli.common import config_argument, console, json_option, print_json
from tuneline.contracts.errors import UserError
from tuneline.contracts.section import flat_values, given_keys
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.spec_loading import load_spec

STARTER = """\
# One file is one run. `tuneline schema` describes every key; `tuneline validate {path}` checks this file.
name: my-model
model:
  base: path/to/base-model        # a folder in Hugging Face layout, or a Hub name
data:
  train: data/train.jsonl         # a file, glob, folder, URL, or hub:owner/name; the format is told from the columns
  max_length_tokens: 1024
adapter:
  method: lora                    # lora | qlora | full
  rank: 16
training:
  epochs: 2
  learning_rate: 2.0e-4
gate:
  metric: exact_match             # the candidate must beat base and champion on this
"""


@click.command()
@click.argument("path", default="config.yaml", type=click.Path(path_type=Path))
def init(path: Path) -> None:
    """Write a config to start from."""
    if path.exists():
        raise UserError.of("the file exists", str(path), "name another file; nothing was changed")
    path.write_text(STARTER.format(path=path), encoding="utf-8")
    click.echo(f"{path} written. Next: edit it, then `tuneline validate {path}` and `tuneline run {path}`.")


@click.command()
@config_argument
@json_option
def validate(config: str, overrides: Sequence[str], as_json: bool) -> None:
    """Check a config, and print it with every default filled in."""
    spec = load_spec(Path(config), overrides)
    base = Path(spec.model.base)
    if base.is_dir():
        from tuneline.planning.run import check_adapter

        check_adapter(spec, base)
    if as_json:
        print_json(spec.model_dump(mode="json"))
        return
    given = set(given_keys(spec))
    out = console()
    for name, value in flat_values(spec):
        mark = "" if name in given else "  [dim](default)[/dim]"
        out.print(f"{name} = {json.dumps(value)}{mark}", soft_wrap=True)
    for reason in spec.adapter.why_merged:
        out.print(f"the adapter is served merged only: {reason}", soft_wrap=True)
    out.print(f"[green]{config} is valid.[/green]")


@click.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors that complete from it."""
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **RunSpec.model_json_schema()})


COMMANDS = (init, validate, schema)
