"""`python -m tuneline.cli`, the same as the command `tuneline`."""

from tuneline.cli.main import main

main(prog_name="tuneline")
