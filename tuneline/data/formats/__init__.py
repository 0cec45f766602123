"""Rows of any known format to `Example`; a row that is none is an `UnusableRow` that says why."""
