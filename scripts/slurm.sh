#!/usr/bin/env bash
# Template of a SLURM job on several GPUs and nodes that is requeued before its time is up and goes on where it was.
# sbatch scripts/slurm.sh train_autorep.py --arch resnet18_in ... (all but --gpu and --resume)
#SBATCH --job-name=autorep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Three minutes before the end every process gets SIGTERM, saves and exits; then the job goes back into the queue.
requeue() {
    kill -TERM "$step"
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

srun --kill-on-bad-exit=1 .venv/bin/torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" \
    --rdzv_backend=c10d --rdzv_endpoint="$master:29500" --rdzv_id="$SLURM_JOB_ID" "$@" --resume auto &
step=$!
wait "$step"
