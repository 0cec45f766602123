"""What the stages share, and the light stages: nothing here loads torch or Prefect."""
