"""One YAML becomes a served model: the whole pipeline on one screen.

Works with no server (`tuneline run CONFIG`) and as the deployment `finetune/main`. Every stage hands the next a small
record of files on disk; a stage whose artifact is in the store already is found there, not made again.
"""

from prefect import State, flow

from flows import stages
from flows.context import Run, account
from flows.endings import conclude, name_of_run
from flows.launch import end_with_worker
from tuneline.contracts.artifacts import Outcome
from tuneline.contracts.run_record import RunRecord


@flow(
    name="finetune",
    description="Prepare, plan, train, merge, evaluate, decide, register, package, verify, release.",
    flow_run_name=name_of_run,
)
def finetune(config: str = "configs/quickstart.yaml", overrides: tuple[str, ...] = ()) -> State[RunRecord]:
    """Run the pipeline; it ends Completed, under the name Rejected or Inconclusive where the gate says so.

    Args:
        config: YAML file of the run, as the worker sees it.
        overrides: changes to the file, as training.epochs=2 or adapter.rank=8; checked like the file.
    """
    end_with_worker()
    run = Run(config, overrides)
    with account(run):
        prepared = stages.prepare(run)
        plan = stages.plan(run, prepared)
        adapter = stages.train(run, prepared, plan)
        merged = stages.merge(run, prepared, adapter)
        evaluation = stages.evaluate(run, prepared, merged)
        verdict = stages.decide(run, evaluation)
        version = stages.register(run, prepared, adapter, merged, verdict)
        if verdict.record.outcome is Outcome.PROMOTE:
            image = stages.package(run, adapter, merged, verdict, version)
            smoke = stages.verify(run, image, merged, evaluation, version)
            stages.release(run, version, verdict, smoke)
        else:
            run.skip(["package", "verify", "release"], f"the verdict is {verdict.record.outcome}")
        return conclude(run, verdict.record)
