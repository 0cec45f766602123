"""What tells a row that should not be trained on: repeats, leaks, filters, secrets and personal data."""
