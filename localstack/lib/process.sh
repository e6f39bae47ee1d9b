# shellcheck shell=bash
# Processes that outlive the script that started them. Sourced by lib.sh.

# A daemon that kept our stdout would hang `eval "$(up)"`, one that kept a lock would hang the next script.
# The start time beside the id guards against killing a stranger that got the same id later.
# SERVICE NAME HOW COMMAND…, where HOW is as_root or empty.
spawn() {
    local file=$STATE/$1/$2.pid log=$STATE/$1/$2.log how=$3
    shift 3
    rm -f "$file"
    # shellcheck disable=SC2016 # expanded by the inner shell
    $how setsid --fork bash -c \
        'cd "$(dirname "$0")" && echo "$$ $(cut -d" " -f22 /proc/$$/stat)" >"$0.new" && mv "$0.new" "$0" && exec "$@"' \
        "$file" "$@" </dev/null >>"$log" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
    local i
    for i in $(seq 1 1200); do
        [ ! -s "$file" ] || return 0
        sleep 0.05
    done
    die "$file did not appear after $i tries"
}

# Prints the id of SERVICE's process NAME while it lives.
pid_of() {
    local pid start stat
    read -r pid start 2>/dev/null <"$STATE/$1/$2.pid" || return 1
    { stat=$(cat "/proc/$pid/stat"); } 2>/dev/null || return 1
    # shellcheck disable=SC2086 # fields are wanted
    set -- ${stat##*) }
    [ "$1" != Z ] && [ "${20}" = "$start" ] && echo "$pid"
}

# SERVICE NAME SIGNAL SECONDS: false when it outlives the seconds.
stop_process() {
    local pid i
    pid=$(pid_of "$1" "$2") || return 0
    kill "-$3" "$pid" 2>/dev/null || as_root kill "-$3" "$pid" 2>/dev/null || true
    for i in $(seq 1 $(($4 * 20))); do
        pid_of "$1" "$2" >/dev/null || return 0
        sleep 0.05
    done
    note "$1: $2 ($pid) outlived signal $3 by $4 s ($i looks)"
    return 1
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
