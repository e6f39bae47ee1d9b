# shellcheck shell=bash
# Shared by all commands of localstack/: the state folder, locks, packages, and the other files of lib/ and brokers/.
# Sourced, never run. It keeps to bash 3.2, which is what macOS has.

set -euo pipefail

# The folder `localstack`.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
ALL_SERVICES="rabbitmq rabbitmq4 aws servicebus postgres mariadb rabbitmq-cluster"
READY_TIMEOUT=${POLYBUS_LOCALSTACK_TIMEOUT:-600}

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

# Takes one lock per service, so that restarting one broker does not wait for another. The locks are taken in the order
# of ALL_SERVICES, so that two callers cannot wait for each other. macOS has no flock; there Compose serializes.
lock() {
    command -v flock >/dev/null || return 0
    local service
    for service in $ALL_SERVICES; do
        case " $* " in *" $service "*) ;; *) continue ;; esac
        case $service in
            rabbitmq) exec 8>"$STATE/$service.lock"; lock_fd 8 "$service" ;;
            rabbitmq4) exec 9>"$STATE/$service.lock"; lock_fd 9 "$service" ;;
            aws) exec 6>"$STATE/$service.lock"; lock_fd 6 "$service" ;;
            servicebus) exec 5>"$STATE/$service.lock"; lock_fd 5 "$service" ;;
            rabbitmq-cluster) exec 4>"$STATE/$service.lock"; lock_fd 4 "$service" ;;
            postgres) exec 3>"$STATE/$service.lock"; lock_fd 3 "$service" ;;
            mariadb) exec 7>"$STATE/$service.lock"; lock_fd 7 "$service" ;;
        esac
    done
}

lock_fd() {
    flock --nonblock "$1" && return
    note "$2: another script is at work on it, waiting"
    flock "$1"
}

# Ends `docker info` after five seconds, because it hangs when the engine does, and macOS has no `timeout`.
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
        exec >"$STATE/apt.log" 2>&1
        hold_services
        trap release_services EXIT
        as_root dpkg --configure -a || true
        as_root apt-get update -q || true
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
    ) 7>"$STATE/apt.lock" || { tail -n 20 "$STATE/apt.log" >&2; die "apt-get failed: $STATE/apt.log"; }
}

# Where systemd runs, the packages would start a broker and an epmd of their own on the standard ports. PostgreSQL's
# would also make a database cluster, which the next boot starts on port 5432.
NO_CLUSTER=/etc/postgresql-common/createcluster.d/polybus-localstack.conf
hold_services() {
    held=
    case " $missing " in *" postgresql "*)
        as_root mkdir -p "${NO_CLUSTER%/*}"
        echo 'create_main_cluster = false' | as_root tee "$NO_CLUSTER" >/dev/null ;;
    esac
    [ ! -e /usr/sbin/policy-rc.d ] || return 0
    held=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
    as_root chmod 755 /usr/sbin/policy-rc.d
}
release_services() {
    [ ! -e "$NO_CLUSTER" ] || as_root rm -f "$NO_CLUSTER"
    [ -z "$held" ] || as_root rm -f /usr/sbin/policy-rc.d
}

# shellcheck source=tls.sh
. "$HERE/lib/tls.sh"
# shellcheck source=python.sh
. "$HERE/lib/python.sh"
# shellcheck source=process.sh
. "$HERE/lib/process.sh"
# shellcheck source=service.sh
. "$HERE/lib/service.sh"
# shellcheck source=../brokers/rabbitmq.sh
. "$HERE/brokers/rabbitmq.sh"
# shellcheck source=../brokers/rabbitmq-cluster.sh
. "$HERE/brokers/rabbitmq-cluster.sh"
cluster_possible || ALL_SERVICES=${ALL_SERVICES% rabbitmq-cluster}
# shellcheck source=../brokers/aws.sh
. "$HERE/brokers/aws.sh"
# shellcheck source=../brokers/servicebus.sh
. "$HERE/brokers/servicebus.sh"
# shellcheck source=../brokers/postgres.sh
. "$HERE/brokers/postgres.sh"
# shellcheck source=../brokers/mariadb.sh
. "$HERE/brokers/mariadb.sh"
