"""Rows in, tokens with loss masks out, and a receipt of everything in between."""
