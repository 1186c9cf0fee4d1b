# Sourced by the drivers. in_background LOG SCRIPT ARGS...: checks the configuration, then starts the script with nohup
# and says where its log and its run folder are.
in_background() {
    local log=$1 script=$2 python=.venv/bin/python plan pid
    shift 2
    if [ -n "${PYTHON:-}" ]; then python=$PYTHON; elif [ ! -x $python ]; then python=python3; fi
    plan=$("$python" "$script" "$@" --dry_run) || return
    nohup "$python" "$script" "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    echo "started process $pid"
    echo "log: $log"
    grep '^run folder: ' <<<"$plan"
}
