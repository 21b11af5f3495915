#!/bin/bash
# One run for each task of a SLURM array job:   sbatch --array=0-19 examples/slurm.sh
#
# The script's run has a name of its own for each task, so that it resumes wherever it is started
# next. `tinker-recovery run` restarts it after a crash. SLURM sends TERM two minutes before the time
# limit: the run saves its last step, its claim is released, and the task is put back into the queue.
# A node that dies is seen to by SLURM itself (--requeue).
#
# SCRIPT names another script; it gets --name.
#SBATCH --job-name=tinker
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120

script=${SCRIPT:-examples/minimal.py}

tinker-recovery run -- python "$script" --name "sft-$SLURM_ARRAY_TASK_ID" "$@" &
child=$!

requeue() {
  kill -TERM "$child"
  wait "$child"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue TERM

wait "$child"
