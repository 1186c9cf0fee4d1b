# need_file PATH FIX: stop here rather than in the log of a background process.
need_file() {
    if [ ! -e "$1" ]; then
        echo "error: there is no $1: $2" >&2
        exit 2
    fi
}

# Sourced by the drivers. in_background LOG SCRIPT ARGS...: checks the configuration, then starts the script with nohup
# and says where its log and its run folder are.
in_background() {
    local log=$1 script=$2 python=.venv/bin/python plan pid
    shift 2
    if [ -n "${PYTHON:-}" ]; then python=$PYTHON; elif [ ! -x $python ]; then python=python3; fi
    plan=$("$python" "$script" "$@" --dry_run) || return
    case " $* " in *" --dry_run "*) echo "$plan" && return ;; esac
    nohup "$python" "$script" "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    echo "started process $pid"
    echo "log: $log"
    grep '^run folder: ' <<<"$plan"
}
