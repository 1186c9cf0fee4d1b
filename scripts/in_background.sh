# Sourced by the scripts that train in the background, in the folder that the caller stands in.
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# need_file PATH FIX: stop here if PATH is missing, rather than later in the log of a background process.
need_file() {
    if [ ! -e "$1" ]; then
        echo "error: there is no $1: $2" >&2
        exit 2
    fi
}

# in_background LOG SCRIPT ARGS...: check the configuration, start the script with nohup, and print the paths of its log
# and of its run folder.
in_background() {
    local log=$1 script=$_root/$2 python=$_root/.venv/bin/python plan pid
    shift 2
    if [ -n "${PYTHON:-}" ]; then python=$PYTHON; elif [ ! -x "$python" ]; then python=python3; fi
    plan=$("$python" "$script" "$@" --dry_run) || return
    case " $* " in *" --dry_run "*) echo "$plan" && return ;; esac
    nohup "$python" "$script" "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    echo "started process $pid"
    echo "log: $log"
    grep '^run folder: ' <<<"$plan"
}
