"""What stages agree on: the config, the artifacts, their identity, the store, the job folder and the errors."""
