"""Fixtures shared by the tests, and the environment that every test runs in."""

import os

pytest_plugins = ["registry_fixtures"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
