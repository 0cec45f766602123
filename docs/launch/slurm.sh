#!/bin/bash
# One run on as many nodes as the allocation has:
#
#   sbatch --nodes=2 --gpus-per-node=8 docs/launch/slurm.sh configs/my-run.yaml [--set key=value ...]
#
# The YAML is the one of a single machine; budget.gpus counts the GPUs of all nodes (here 16).
# TUNELINE_HOME, the base model and the data are on a file system that every node mounts at the same path.
#SBATCH --job-name=tuneline
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=tuneline-%j.log
# --signal: two minutes before the time is over all steps get SIGTERM, save a checkpoint and end as pre-empted.
# --requeue: after a node failure Slurm runs the whole script again; the training goes on from the newest checkpoint.
set -euo pipefail

: "${TUNELINE_HOME:?set it to a folder that all nodes mount}"
export TUNELINE_HOME
PREEMPTED=5 # exit code of `tuneline`

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts[0]}
export TUNELINE_NODES=$SLURM_JOB_NUM_NODES
export TUNELINE_RENDEZVOUS=$first:$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node do not meet

others=
if ((TUNELINE_NODES > 1)); then
    srun --nodes=$((TUNELINE_NODES - 1)) --ntasks=$((TUNELINE_NODES - 1)) --exclude="$first" tuneline node &
    others=$!
fi

status=0
srun --nodes=1 --ntasks=1 --nodelist="$first" tuneline run "$@" || status=$?

if [[ -n $others ]]; then
    # They end with the training. Where there was none, because the store had it already, they still wait for it.
    kill -TERM "$others" 2>/dev/null || true
    wait "$others" || true
fi
if ((status == PREEMPTED)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
