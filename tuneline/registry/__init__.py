"""MLflow: the run's metrics, the model's versions with their lineage, and the aliases that say which one serves.

The only package that knows MLflow. `import mlflow` takes 1.4 to 6 s on two cores, so it stands inside functions.
"""
