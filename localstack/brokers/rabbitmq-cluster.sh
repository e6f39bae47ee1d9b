# shellcheck shell=bash
# The service `rabbitmq-cluster`: two nodes of this machine's RabbitMQ package (3.10 on Debian 12), each with its own
# ports and data, behind one epmd. rabbitmq.sh has the functions for one broker. Sourced by lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

CLUSTER_NODES="1 2"

cluster_settings() { # SERVICE ENGINE
    cat <<END
engine=$2
amqp_port1=$(port_setting "$1" PORT 5675)
amqp_port2=$(port_setting "$1" PORT2 5676)
management_port1=$(port_setting "$1" MANAGEMENT_PORT 15675)
management_port2=$(port_setting "$1" MANAGEMENT_PORT2 15676)
dist_port1=$(port_setting "$1" DIST_PORT 25675)
dist_port2=$(port_setting "$1" DIST_PORT2 25676)
epmd_port=$(port_setting "$1" EPMD_PORT 24375)
END
}

cluster_exports() {
    load_settings "$1"
    local name n
    name=$(prefix "$1")
    for n in $CLUSTER_NODES; do
        cluster_node "$n"
        printf "export %s_URL%s='amqp://guest:guest@127.0.0.1:%s/%%2f?management=http://127.0.0.1:%s'\n" \
            "$name" "${n#1}" "$amqp_port" "$management_port"
    done
}

# There is no Compose for it.
cluster_engine() { echo native; }
cluster_compose_variables() { :; }

# Only where the package can be had: elsewhere it is left out of `up` and `test` without arguments.
cluster_possible() { [ "$(uname)" = Linux ] && { [ -x $BIN/rabbitmq-server ] || command -v apt-get >/dev/null; }; }

# One node's settings under the names that rabbitmq.sh knows.
cluster_node() { # NODE
    local name
    for name in amqp management dist; do
        local of=${name}_port$1
        eval "${name}_port=${!of}"
    done
    tls_port=
    node=$1
}
cluster_name() { echo "polybus-cluster$1@localhost"; }
cluster_dir() { echo "$STATE/rabbitmq-cluster/node$1"; }

cluster_native_install() { install_packages /usr/bin/curl=curl $BIN/rabbitmq-server=rabbitmq-server; }

cluster_native_prepare() {
    local n dir cookie
    cookie=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    for n in $CLUSTER_NODES; do
        cluster_node "$n"
        dir=$(cluster_dir "$n")
        rm -rf "$dir"
        mkdir -p "$dir/mnesia" "$dir/log"
        # Nodes that know the same secret are one cluster.
        (umask 077 && printf '%s' "$cookie" >"$dir/.erlang.cookie")
        chmod 400 "$dir/.erlang.cookie"
        echo '[rabbitmq_management].' >"$dir/enabled_plugins"
        {
            write_config "$1" none
            echo 'cluster_formation.peer_discovery_backend = classic_config'
            for m in $CLUSTER_NODES; do echo "cluster_formation.classic_config.nodes.$m = $(cluster_name "$m")"; done
            # The first to start makes the cluster, and the second finds it.
            echo 'cluster_formation.randomized_startup_delay_range.min = 0'
            echo 'cluster_formation.randomized_startup_delay_range.max = 0'
        } >"$dir/rabbitmq.conf"
        rm -f "$STATE/$1/node$n.log"
    done
    rm -f "$STATE/$1/epmd.log"
}

cluster_env() { # HOW… -- COMMAND…, of the node that cluster_node chose
    node_name=$(cluster_name "$node") node_folder=$(cluster_dir "$node") in_node rabbitmq-cluster "$@"
}

# SERVICE [NODE]
cluster_native_start() {
    local n chosen=${2:-$CLUSTER_NODES}
    cluster_node 1
    pid_of "$1" epmd >/dev/null || cluster_env spawn "$1" epmd "" -- epmd -address 127.0.0.1 -port "$epmd_port"
    for n in $chosen; do
        cluster_node "$n"
        pid_of "$1" "node$n" >/dev/null || cluster_env spawn "$1" "node$n" "" -- $BIN/rabbitmq-server
        # On empty data the second must find the first. After that each waits for the other by itself.
        [ -n "${2:-}" ] || [ -e "$(cluster_dir 2)/mnesia/$(cluster_name 2)" ] || cluster_await_node "$1" "$n"
    done
}
cluster_await_node() { # SERVICE NODE
    local since=$SECONDS
    cluster_node "$2"
    until amqp_answers "$amqp_port"; do
        pid_of "$1" "node$2" >/dev/null || die "$1: node $2 ended while starting"
        [ $((SECONDS - since)) -lt "$READY_TIMEOUT" ] || die "$1: node $2 not ready after $READY_TIMEOUT s"
        sleep 0.1
    done
}
cluster_native_kill() {
    local n
    for n in ${2:-$CLUSTER_NODES}; do stop_process "$1" "node$n" KILL 10; done
}
cluster_native_stop() {
    cluster_native_kill "$1" || die "$1 does not stop"
    stop_process "$1" epmd KILL 5 || die "the epmd of $1 does not stop"
    cluster_node 1
    ! port_open "$epmd_port" || cluster_env -- epmd -port "$epmd_port" -kill >/dev/null 2>&1 || true
    rm -f "$STATE/$1"/*.pid
}
# SERVICE [NODE]: without a node both, since `up` starts what is missing.
cluster_native_running() {
    local n
    for n in ${2:-$CLUSTER_NODES}; do pid_of "$1" "node$n" >/dev/null || return 1; done
}
cluster_native_partly_running() {
    local n
    for n in $CLUSTER_NODES; do ! pid_of "$1" "node$n" >/dev/null || return 0; done
    return 1
}
# On the first node that runs; `-n polybus-cluster2@localhost` asks another.
cluster_native_ctl() {
    local service=$1 n
    shift
    for n in $CLUSTER_NODES; do
        cluster_node "$n"
        ! pid_of "$service" "node$n" >/dev/null || break
    done
    cluster_env -- $BIN/rabbitmqctl "$@"
}
cluster_native_log() { tail -n 30 "$STATE/$1"/node?.log "$STATE/$1"/node?/log/*.log 2>/dev/null || true; }

cluster_ports() { echo "$amqp_port1 $amqp_port2 $management_port1 $management_port2"; }

# SERVICE [NODE]
cluster_answers() {
    local n
    for n in ${2:-$CLUSTER_NODES}; do
        cluster_node "$n"
        amqp_answers "$amqp_port" && curl --silent --fail --max-time 3 --user guest:guest --output /dev/null \
            "http://127.0.0.1:$management_port/api/overview" || return 1
    done
    [ -n "${2:-}" ] || curl --silent --fail --max-time 3 --user guest:guest "http://127.0.0.1:$management_port1/api/nodes?columns=running" |
        grep -q 'true.*true'
}
