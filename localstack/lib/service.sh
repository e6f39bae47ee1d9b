# shellcheck shell=bash
# The steps that every service goes through: settings, start, readiness, stop. What differs between services is in
# their files in ../brokers, in functions named after the family: `rabbitmq_answers`, `aws_native_start`. Sourced by
# lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

family() { case $1 in rabbitmq4) echo rabbitmq ;; rabbitmq-cluster) echo cluster ;; *) echo "$1" ;; esac; }

# VERB SERVICE ARGS…: the family's own way of doing it under this engine, else the engine's.
act() {
    local verb=$1 name
    shift
    name=$(family "$1")_${engine}_$verb
    declare -F "$name" >/dev/null || name=${engine}_$verb
    "$name" "$@"
}

# VERB SERVICE ARGS…: the same under every engine.
service_do() {
    local verb=$1
    shift
    "$(family "$1")_$verb" "$@"
}

# --- settings, kept from `up` on so that the other scripts act on what was started, whatever their environment says ---

load_settings() {
    [ -s "$STATE/$1/settings" ] || return 1
    # shellcheck source=/dev/null # written by cold_start
    . "$STATE/$1/settings"
}

prefix() { printf 'POLYBUS_%s' "$(printf '%s' "$1" | tr '[:lower:]-' '[:upper:]_')"; }

port_setting() { # SERVICE NAME DEFAULT
    local name
    name=$(prefix "$1")_$2
    printf '%s' "${!name:-$3}"
}

# --- native: one process named broker ---

native_stop() {
    stop_process "$1" broker KILL 10 || die "$1 does not stop"
    rm -f "$STATE/$1/broker.pid"
}
native_kill() { stop_process "$1" broker KILL 10; }
native_running() { pid_of "$1" broker >/dev/null; }
native_partly_running() { native_running "$1"; }
native_log() { tail -n 30 "$STATE/$1/broker.log" 2>/dev/null || true; }

# --- Docker: one service of compose.yaml ---

compose() {
    # Two stacks with two state folders are two projects.
    local project
    project=polybus-$(printf '%s' "$STATE" | cksum | cut -d' ' -f1)
    (
        export POLYBUS_LOCALSTACK_DIR=$STATE
        for service in $ALL_SERVICES; do
            load_settings "$service" || eval "$(service_do settings "$service" docker)"
            service_do compose_variables "$service"
        done
        # A profile only lets its services be named; nothing of it starts unasked.
        docker compose --project-name "$project" --file "$HERE/brokers/compose.yaml" --profile servicebus-official "$@" </dev/null
    )
}
docker_install() { :; }
docker_prepare() { :; }
# A container that is there is one that `restart` killed: its data stays.
docker_start() {
    if [ -n "$(compose ps --all --quiet "$1")" ]; then compose start "$1" >&2; else compose up --detach "$1" >&2; fi
}
docker_stop() { compose rm --force --stop --volumes "$1" >&2; }
docker_kill() { ! docker_running "$1" || compose kill --signal SIGKILL "$1" >&2; }
docker_running() { [ -n "$(compose ps --quiet --status running "$1" 2>/dev/null)" ]; }
docker_partly_running() { docker_running "$1"; }
docker_log() { compose logs --tail 30 "$1" 2>&1 || true; }

# --- either ---

running() { load_settings "$1" && act running "$1"; }

# SERVICE [SECONDS [NODE]]: false when the broker ended or the deadline passed.
await_ready() {
    load_settings "$1"
    local since=$SECONDS deadline=${2:-$READY_TIMEOUT}
    until service_do answers "$1" ${3:+"$3"}; do
        act running "$1" ${3:+"$3"} || { note "$1: the broker ended while starting"; return 1; }
        [ $((SECONDS - since)) -lt "$deadline" ] || { note "$1: not ready after $deadline s"; return 1; }
        sleep 0.1
    done
}

# SERVICE [NODE]
ready_or_die() {
    await_ready "$1" "$READY_TIMEOUT" ${2:+"$2"} && return
    act log "$1" >&2
    act stop "$1"
    die "$1 did not start"
}

cold_start() { # SERVICE ENGINE
    # What a start cut short, or a broker that hangs, left behind goes by its own settings.
    ! load_settings "$1" || act stop "$1"
    mkdir -p "$STATE/$1"
    service_do settings "$1" "$2" >"$STATE/$1/settings"
    load_settings "$1"
    act install "$1"
    local port
    for port in $(service_do ports "$1"); do
        ! port_open "$port" || die "$1: port $port is taken; see localstack/README.md for the variables that move it"
    done
    [ "$engine" != docker ] || docker_stop "$1"
    act prepare "$1"
    act start "$1"
}
