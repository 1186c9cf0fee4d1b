#!/usr/bin/env bash
# What the scripts beside this one share: train a teacher, then AutoReP on it, then append a row to
# results/published_scale.csv.
# _row.sh ARCH DATASET THOUSANDS_OF_RELUS SEARCH_EPOCHS [FLAGS OF THE SEARCH...] -- [FLAGS FOR BOTH...]
#   GPU (0): index of the GPU or cpu; DATA (./data): folder of the data set; OUT (.): where run folders go; SEED (0)
#   MINUTES: time limit, after which it exits with 75 (EX_TEMPFAIL). Run the same command again to resume, until the row
#     is written. Starting and saving take another minute or two: for slices under 10 minutes use MINUTES=8.
#   REPLACEMENT of a dropped ReLU: quadratic (default), line (linear) or identity
#   RECIPE (reference) of the search, BASELINE (reference) recipe of the teacher
#   REDUCED=1: a smoke run on the CPU with made-up images, two steps per epoch, the same network and ReLU budget. Its
#     row goes to OUT/reduced.csv (OUT is then quickstart_runs/reduced by default)
#   DRY_RUN=1: print the configurations and exit
set -euo pipefail
source "$(dirname "$0")/../here.sh"
arch=$1 dataset=$2 relus=$3 search_epochs=$4
shift 4
search_flags=()
while [ "$1" != -- ]; do search_flags+=("$1") && shift; done
shift

python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || bash scripts/setup_env.sh requirements.txt
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if ! [[ ${MINUTES:-1} =~ ^[0-9]*\.?[0-9]+$ ]]; then
    echo "error: invalid MINUTES=$MINUTES: expected a number such as 8" >&2
    exit 2
fi

# ---- the configuration

recipe=${RECIPE:-reference} baseline=${BASELINE:-reference} seed=${SEED:-0}
out=${OUT:-.} data=${DATA:-./data} table=results/published_scale.csv
reduced_teacher=() reduced_search=() library_options=()
gpu=${GPU:-0}
if [ "${REDUCED:-0}" = 1 ]; then
    out=${OUT:-quickstart_runs/reduced} gpu=cpu library_options=(--random)
    data=$out/data/$dataset table=$out/reduced.csv
    [ -d "$data" ] || "$python" scripts/reproduce/reduced_data.py "$dataset" "$data"
    if [ "$dataset" = imagenet ]; then dataset=folder; fi
    set -- "$@" --batch_size 4 --precision full --compile false
    reduced_teacher=(--epochs 1) reduced_search=(--mask_epochs 1 --epochs 1)
fi

case $baseline in
    reference) teacher_recipe=(--batch_size 256 --epochs 400 --optim cosine --w_lr 0.1 --w_lr_min 1e-5
                               --w_momentum 0.9 --w_weight_decay 5e-4) ;;
    fast) teacher_recipe=(--recipe fast) ;;
    *) echo "error: invalid BASELINE=$baseline: expected reference or fast" >&2 && exit 2 ;;
esac
search_recipe=(--recipe "$recipe" --batch_size 128 --optim cosine --w_lr 1e-3 --w_mask_lr 1e-3 --threshold 0.003
               "${search_flags[@]}")
case ${REPLACEMENT:-quadratic} in
    quadratic) act=(--act_type ReLU_masked_dapa_relay --degree 2) ;;
    line) act=(--act_type ReLU_masked_dapa_relay --degree 1) ;;
    identity) act=(--act_type ReLU_masked_relay) ;;
    *) echo "error: invalid REPLACEMENT=$REPLACEMENT: expected quadratic, line or identity" >&2 && exit 2 ;;
esac
common=(--arch "$arch" --dataset "$dataset" --data_path "$data" --gpu "$gpu" --seed "$seed" --out_dir "$out"
        --resume auto)
teacher=(train_baseline.py "${common[@]}" "${teacher_recipe[@]}" --ext "${baseline}_seed$seed" "$@"
         "${reduced_teacher[@]}")
search=(train_autorep.py "${common[@]}" "${search_recipe[@]}" --ext "${recipe}_seed$seed" "$@" --ReLU_count "$relus"
        "${act[@]}" --mask_epochs "$search_epochs" "${reduced_search[@]}" --distil)

# ---- runs, each limited to the rest of MINUTES

finished() { grep -qs '"finished": true' "$1/summary.json"; }

folder_of() { "$python" "$@" --dry_run | sed -n 's/^run folder: //p'; }

minutes_left() { # at least 0.01, since --max_minutes must be positive
    awk -v all="$MINUTES" -v used="$SECONDS" 'BEGIN { left = all - used / 60; print (left > 0.01 ? left : 0.01) }'
}

again() {
    echo "not finished: run the same command again to resume" >&2
    exit 75
}

# train FOLDER SCRIPT FLAGS...: finish a run, or train until MINUTES are over and exit.
trained=false
train() {
    local folder=$1 limit=()
    shift
    if finished "$folder"; then return; fi
    if [ -n "${MINUTES:-}" ]; then
        # The first run of a call always makes progress. A second run does not start in the last quarter of the time,
        # because --max_minutes cannot shorten the minutes that decoding the data and compiling the step take.
        if $trained && awk -v all="$MINUTES" -v used="$SECONDS" 'BEGIN { exit !(used > 45 * all) }'; then again; fi
        limit=(--max_minutes "$(minutes_left)")
    fi
    "$python" "$@" "${limit[@]}"
    trained=true
    finished "$folder" || again
}

folders=()
if [[ $arch == *:* ]]; then # a library's network brings its weights
    teacher_path=$out/teachers/${arch//:/-}_$dataset.pth.tar
elif [ "${DRY_RUN:-0}" = 1 ]; then
    "$python" "${teacher[@]}" --dry_run
    teacher_path=TEACHER/last.pth.tar
else
    folders+=("$(folder_of "${teacher[@]}")")
    teacher_path=${folders[0]}/last.pth.tar
fi
search+=(--teacher_path "$teacher_path" --pretrained_path "$teacher_path")
if [ "${DRY_RUN:-0}" = 1 ]; then exec "$python" "${search[@]}" --dry_run; fi

if [ ${#folders[@]} = 1 ]; then
    train "${folders[0]}" "${teacher[@]}"
elif [ ! -e "$teacher_path" ]; then
    "$python" scripts/reproduce/library_teacher.py "$arch" "$dataset" "$data" "$teacher_path" "${library_options[@]}"
fi
folders+=("$(folder_of "${search[@]}")")
train "${folders[-1]}" "${search[@]}"
"$python" -m autorep.results "$table" "${folders[@]}"
echo "finished: the row is in $table"
