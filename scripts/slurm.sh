#!/usr/bin/env bash
# Template of a SLURM job on several GPUs and nodes, one task per GPU. Before its time is up it is requeued, and it then
# resumes: sbatch scripts/slurm.sh train_autorep.py --arch resnet18_in ... (any flags but --gpu and --resume).
#SBATCH --job-name=autorep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
: "${1:?name the script: sbatch scripts/slurm.sh train_autorep.py --arch resnet18_in ...}"
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
export PYTHON=${PYTHON:-.venv/bin/python}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # differs between jobs that share a node
SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
export MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK

# Three minutes before the end every rank saves and exits; then the job goes back into the queue. scancel signals only
# the tasks. A SIGTERM to srun would kill them before they could save.
requeue() {
    trap '' USR1
    scancel --signal=USR1 "$SLURM_JOB_ID"
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit
}

# SLURM signals every process of a task. A rank and the workers that load its images ignore USR1; its shell turns it
# into one SIGTERM for the rank. (torchrun would send SIGTERM to all of them, and SIGKILL half a minute later.)
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    (trap "" USR1; exec "$PYTHON" "$@" --resume auto) &
    rank=$!
    trap "kill -TERM $rank; wait $rank; exit" USR1
    wait $rank
' task "$@" &
step=$!
trap requeue USR1
wait "$step"
