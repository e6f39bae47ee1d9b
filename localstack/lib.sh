# shellcheck shell=bash
# What the scripts of this folder share. Sourced, never run. Kept to bash 3.2, which is what macOS has.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ALL_SERVICES="rabbitmq rabbitmq4"
READY_TIMEOUT=${POLYBUS_LOCALSTACK_TIMEOUT:-120}

STATE=${POLYBUS_LOCALSTACK_DIR:-$HOME/.cache/polybus-localstack}
mkdir -p "$STATE"
STATE=$(cd "$STATE" && pwd -P)
# RabbitMQ's own scripts fail on spaces, and the certificates' paths stand in URLs.
case $STATE in *[!A-Za-z0-9/._@-]*)
    echo "localstack: set POLYBUS_LOCALSTACK_DIR to a path of letters, digits and ._@- only; this one is $STATE" >&2
    exit 1 ;;
esac

note() { printf 'localstack: %s\n' "$*" >&2; }
die() { note "$*"; exit 1; }

require_services() {
    local service
    for service in "$@"; do
        case " $ALL_SERVICES " in
            *" $service "*) ;;
            *) die "unknown service '$service'; there are: $ALL_SERVICES" ;;
        esac
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    command -v sudo >/dev/null || die "needs root or sudo for: $*"
    sudo "$@"
}

# One lock per service, so that restarting one broker does not wait for the other. Always taken in the order of
# ALL_SERVICES, so that two callers cannot wait for each other. macOS has no flock; there Compose sorts it out.
lock() {
    command -v flock >/dev/null || return 0
    local service
    for service in $ALL_SERVICES; do
        case " $* " in *" $service "*) ;; *) continue ;; esac
        case $service in
            rabbitmq) exec 8>"$STATE/$service.lock"; lock_fd 8 "$service" ;;
            rabbitmq4) exec 9>"$STATE/$service.lock"; lock_fd 9 "$service" ;;
        esac
    done
}

lock_fd() {
    flock --nonblock "$1" && return
    note "$2: another script is at work on it, waiting"
    flock "$1"
}

# `timeout` is missing on macOS, and a client whose engine hangs would hang us.
docker_answers() {
    [ "${POLYBUS_LOCALSTACK_DOCKER:-1}" != 0 ] || return 1
    command -v docker >/dev/null && docker compose version >/dev/null 2>&1 || return 1
    docker info >/dev/null 2>&1 </dev/null &
    local pid=$! i
    for i in $(seq 1 50); do
        kill -0 "$pid" 2>/dev/null || break
        [ "$i" != 50 ] || kill -9 "$pid" 2>/dev/null || true
        sleep 0.1
    done
    wait "$pid" 2>/dev/null
}

# --- processes of our own ---

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
        "$file" "$@" </dev/null >>"$log" 2>&1 8>&- 9>&-
    local i
    for i in $(seq 1 100); do
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

# A connect alone proves nothing: Docker accepts for a broker that is not there yet. The answer to a protocol header is
# a method frame, whose first byte is 1.
amqp_answers() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf 'AMQP\0\0\11\1' >&3
        IFS= read -r -n 1 -t 2 byte <&3 && [ "$byte" = $'\1' ]
    ) 2>/dev/null
}

# Packages are named by the file that shows they are there: `FILE=PACKAGE…`.
install_packages() {
    local pair missing=""
    for pair in "$@"; do
        [ -e "${pair%%=*}" ] || missing="$missing ${pair#*=}"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "without Docker this needs a Debian machine; missing:$missing"
    note "installing$missing"
    # shellcheck disable=SC2086 # a list of words
    (
        flock 7
        hold_services
        trap release_services EXIT
        as_root dpkg --configure -a || true
        as_root apt-get update -q || true
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
    ) 7>"$STATE/apt.lock" >"$STATE/apt.log" 2>&1 || { tail -n 20 "$STATE/apt.log" >&2; die "apt-get failed: $STATE/apt.log"; }
}

# Where systemd runs, the packages would start a broker and an epmd of their own on the standard ports.
hold_services() {
    held=
    [ ! -e /usr/sbin/policy-rc.d ] || return 0
    held=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
    as_root chmod 755 /usr/sbin/policy-rc.d
}
release_services() { [ -z "$held" ] || as_root rm -f /usr/sbin/policy-rc.d; }

# --- settings, kept from `up` on so that the other scripts act on what was started, whatever their environment says ---

load_settings() {
    [ -s "$STATE/$1/settings" ] || return 1
    # shellcheck source=/dev/null # written by cold_start
    . "$STATE/$1/settings"
}

# shellcheck source=rabbitmq.sh
. "$HERE/rabbitmq.sh"
