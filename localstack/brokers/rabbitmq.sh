# shellcheck shell=bash
# The services `rabbitmq` (3.10, from this machine's package) and `rabbitmq4` (4.0, in a Debian 13 chroot). Sourced by
# lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

BIN=/usr/lib/rabbitmq/bin
CHROOT=$STATE/rabbitmq4/root

rabbitmq_settings() { # SERVICE ENGINE
    local n=3 tls=
    if [ "$1" = rabbitmq ]; then tls=$(port_setting "$1" TLS_PORT 5683); else n=4; fi
    cat <<END
engine=$2
amqp_port=$(port_setting "$1" PORT 567$n)
dist_port=$(port_setting "$1" DIST_PORT 2567$n)
epmd_port=$(port_setting "$1" EPMD_PORT 2437$n)
management_port=$(port_setting "$1" MANAGEMENT_PORT 1567$n)
tls_port=$tls
END
}

rabbitmq_exports() {
    load_settings "$1"
    local name tls=$STATE/tls
    name=$(prefix "$1")
    printf "export %s_URL='amqp://guest:guest@127.0.0.1:%s/%%2f?management=http://127.0.0.1:%s'\n" \
        "$name" "$amqp_port" "$management_port"
    if [ -n "$tls_port" ]; then
        printf "export %s_TLS_URL='amqps://guest:guest@localhost:%s/%%2f?cacert=%s&cert=%s&key=%s'\n" \
            "$name" "$tls_port" "$tls/ca.pem" "$tls/client.pem" "$tls/client.key"
    fi
}

# --- configuration ---

# SERVICE TLS-FOLDER-AS-THE-BROKER-SEES-IT
write_config() {
    cat <<'END'
disk_free_limit.absolute = 64MB
vm_memory_high_watermark.relative = 0.7
log.file.level = info
log.connection.level = warning
END
    if [ "$engine" = docker ]; then
        [ -z "$tls_port" ] || echo 'listeners.ssl.default = 5671'
    else
        cat <<END
log.console = false
listeners.tcp.1 = 127.0.0.1:$amqp_port
management.tcp.ip = 127.0.0.1
management.tcp.port = $management_port
END
        if [ -n "$tls_port" ]; then
            echo "listeners.ssl.1 = 127.0.0.1:$tls_port"
            # Clients that are told `localhost` may try this one first.
            ! grep -qs '^0*1 ' /proc/net/if_inet6 || echo "listeners.ssl.2 = ::1:$tls_port"
        fi
    fi
    if [ -n "$tls_port" ]; then
        cat <<END
ssl_options.cacertfile = $2/ca.pem
ssl_options.certfile = $2/server.pem
ssl_options.keyfile = $2/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
END
    fi
}

# --- native ---

# The broker's own folder, as this machine sees it and as the broker does.
node_dir() { if [ "$1" = rabbitmq4 ]; then echo "$CHROOT/polybus"; else echo "$STATE/$1/node"; fi; }
inner_dir() { if [ "$1" = rabbitmq4 ]; then echo /polybus; else node_dir "$1"; fi; }

# Runs `HOW… COMMAND…` with the broker's environment and nothing of ours, in the chroot where the broker lives in one.
# /proc and /dev are mounted in a mount namespace of the process's own: they go with it, however it ends, and removing
# the state folder can never reach them.
in_node() { # SERVICE HOW… -- COMMAND…
    local service=$1 dir how=()
    shift
    while [ "$1" != -- ]; do how+=("$1"); shift; done
    shift
    dir=${node_folder:-$(inner_dir "$service")}
    local environment=(
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin" "HOME=$dir" LANG=C.UTF-8
        "RABBITMQ_NODENAME=${node_name:-polybus-$service@localhost}"
        "RABBITMQ_CONF_ENV_FILE=$dir/none" "RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf" "RABBITMQ_CONFIG_FILES=$dir/none"
        "RABBITMQ_ADVANCED_CONFIG_FILE=$dir/none" "RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins"
        "RABBITMQ_MNESIA_BASE=$dir/mnesia" "RABBITMQ_LOG_BASE=$dir/log" "RABBITMQ_DIST_PORT=$dist_port"
        "ERL_EPMD_PORT=$epmd_port" ERL_EPMD_ADDRESS=127.0.0.1
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}"
        # Without this the start script stays as a shell around the broker, and its id is not the broker's.
        detached=1
    )
    if [ "$service" = rabbitmq4 ]; then
        # shellcheck disable=SC2016 # expanded by the inner shell
        ${how[@]+"${how[@]}"} unshare --mount bash -c \
            'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$@"' "$CHROOT" \
            --userspec="$(id -u):$(id -g)" "$CHROOT" env -i "${environment[@]}" "$@"
    else
        ${how[@]+"${how[@]}"} env -i "${environment[@]}" "$@"
    fi
}

node_how() { if [ "$1" = rabbitmq4 ]; then echo as_root; fi; }

rabbitmq_native_install() {
    local common=(/usr/bin/openssl=openssl /usr/bin/curl=curl)
    if [ "$1" = rabbitmq ]; then
        install_packages "${common[@]}" $BIN/rabbitmq-server=rabbitmq-server
    else
        install_packages "${common[@]}" /usr/sbin/debootstrap=debootstrap \
            /usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring
        build_chroot
    fi
}

# This machine's own mirror, where it is a Debian machine; else debootstrap's default.
debian_mirror() {
    grep -qs '^ID=debian' /etc/os-release || return 0
    { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; } |
        sed -nE '/security/d; s/^(URIs:|deb (\[[^]]*\] )?) *(https?:[^ ]+).*/\3/p' | sed -n 1p
}

# Renamed when whole, so one that was cut short is never taken for a good one.
build_chroot() {
    local log=$STATE/rabbitmq4/debootstrap.log
    [ -x "$CHROOT$BIN/rabbitmq-server" ] && [ -x "$CHROOT/usr/bin/erl" ] && return
    note "rabbitmq4: making a Debian 13 chroot in $CHROOT, once (about a minute)"
    as_root rm -rf --one-file-system "$CHROOT" "$CHROOT.partial"
    # Its mounts, too, belong in a namespace that goes with it.
    # shellcheck disable=SC2046 # no mirror, no word
    as_root unshare --mount /usr/sbin/debootstrap --variant=minbase --include=rabbitmq-server \
        --keyring=/usr/share/keyrings/debian-archive-keyring.gpg trixie "$CHROOT.partial" $(debian_mirror) \
        </dev/null >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "debootstrap failed: $log"; }
    as_root find "$CHROOT.partial/var/cache/apt/archives" -name '*.deb' -delete
    as_root mv "$CHROOT.partial" "$CHROOT"
}

rabbitmq_native_prepare() {
    local dir
    [ -z "$tls_port" ] || make_certificates
    dir=$(node_dir "$1")
    as_root rm -rf --one-file-system "$dir"
    as_root mkdir -p "$dir"
    as_root chown "$(id -u):$(id -g)" "$dir"
    mkdir "$dir/mnesia" "$dir/log"
    echo '[rabbitmq_management].' >"$dir/enabled_plugins"
    write_config "$1" "$STATE/tls" >"$dir/rabbitmq.conf"
    rm -f "$STATE/$1/epmd.log" "$STATE/$1/broker.log"
}

rabbitmq_native_start() {
    local how
    how=$(node_how "$1")
    # An epmd of its own per broker: no broker of the user's is in the way, and its end is no broker's but ours.
    pid_of "$1" epmd >/dev/null ||
        in_node "$1" spawn "$1" epmd "$how" -- epmd -address 127.0.0.1 -port "$epmd_port"
    in_node "$1" spawn "$1" broker "$how" -- $BIN/rabbitmq-server
}
# A graceful stop takes seconds and saves data that the next `up` removes.
rabbitmq_native_stop() {
    stop_process "$1" broker KILL 10 || die "$1 does not stop"
    stop_process "$1" epmd KILL 5 || die "the epmd of $1 does not stop"
    # Where ours was killed from outside, the broker or rabbitmqctl has started another.
    # shellcheck disable=SC2046 # no word where nothing is needed
    ! port_open "$epmd_port" || in_node "$1" $(node_how "$1") -- epmd -port "$epmd_port" -kill >/dev/null 2>&1 || true
    rm -f "$STATE/$1/broker.pid" "$STATE/$1/epmd.pid"
}
rabbitmq_native_ctl() {
    local service=$1
    shift
    # shellcheck disable=SC2046 # no word where nothing is needed
    in_node "$service" $(node_how "$service") -- $BIN/rabbitmqctl "$@"
}
rabbitmq_native_log() { tail -n 30 "$STATE/$1/broker.log" "$(node_dir "$1")"/log/*.log 2>/dev/null || true; }

# --- Docker ---

rabbitmq_docker_prepare() {
    [ -z "$tls_port" ] || make_certificates
    write_config "$1" /polybus-tls >"$STATE/$1/docker.conf"
}
rabbitmq_docker_ctl() {
    local service=$1
    shift
    compose exec --no-TTY "$service" rabbitmqctl "$@"
}
# What compose.yaml calls the settings.
rabbitmq_compose_variables() {
    case $1 in
        rabbitmq) export RABBITMQ_AMQP=$amqp_port RABBITMQ_MANAGEMENT=$management_port RABBITMQ_TLS=$tls_port ;;
        rabbitmq4) export RABBITMQ4_AMQP=$amqp_port RABBITMQ4_MANAGEMENT=$management_port ;;
    esac
}

# --- either ---

# 3.10 forgets a queue that was new when it was killed, and then starts that queue's dead-lettering until the supervisor of
# all dead-lettering gives up. Every quorum queue with dead letters answers with INTERNAL_ERROR from then on.
rabbitmq_is_sound() {
    [ "$(act ctl "$1" --quiet eval 'is_pid(whereis(rabbit_fifo_dlx_sup)).' 2>/dev/null)" != false ]
}

rabbitmq_ports() { echo "$amqp_port $management_port $tls_port"; }

rabbitmq_answers() {
    amqp_answers "$amqp_port" &&
        { [ -z "$tls_port" ] || port_open "$tls_port"; } &&
        curl --silent --fail --max-time 3 --user guest:guest --output /dev/null "http://127.0.0.1:$management_port/api/overview"
}

# A connect alone proves nothing: Docker accepts for a broker that is not there yet. The answer to a protocol header is
# a method frame, whose first byte is 1.
amqp_answers() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf 'AMQP\0\0\11\1' >&3
        IFS= read -r -n 1 -t 2 byte <&3 && [ "$byte" = $'\1' ]
    ) 2>/dev/null
}
