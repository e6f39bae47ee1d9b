# shellcheck shell=bash
# The two RabbitMQ services: `rabbitmq` (3.10, from this machine's package) and `rabbitmq4` (4.0, in a Debian 13 chroot).
# Sourced by lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

BIN=/usr/lib/rabbitmq/bin
CHROOT=$STATE/rabbitmq4/root

prefix() { printf 'POLYBUS_%s' "$(printf '%s' "$1" | tr '[:lower:]' '[:upper:]')"; }

port_setting() { # SERVICE NAME DEFAULT
    local name
    name=$(prefix "$1")_$2
    printf '%s' "${!name:-$3}"
}

settings() { # SERVICE ENGINE
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

exports() {
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

# --- certificates ---

# A CA of our own, a server and a client certificate, X.509 v3 with what webpki asks for. Moved into place whole.
make_certificates() {
    local dir=$STATE/tls new=$STATE/tls.new name
    openssl x509 -checkend 604800 -noout -in "$dir/client.pem" >/dev/null 2>&1 && return
    rm -rf "$dir" "$new"
    mkdir -p "$new"
    cat >"$new/extensions.cnf" <<'END'
[req]
distinguished_name = name
prompt = no
[name]
O = polybus localstack
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
    (
        cd "$new"
        for name in ca server client; do
            openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$name.key"
            openssl req -new -config extensions.cnf -key "$name.key" -subj "/O=polybus localstack/CN=polybus $name" -out "$name.csr"
        done
        openssl x509 -req -in ca.csr -signkey ca.key -days 3650 -extfile extensions.cnf -extensions ca -out ca.pem
        for name in server client; do
            openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 \
                -extfile extensions.cnf -extensions "$name" -out "$name.pem"
        done
        # A container's broker runs as another user. They guard nothing but this throwaway broker.
        chmod 644 ./*.key
    ) >"$STATE/tls.log" 2>&1 || { cat "$STATE/tls.log" >&2; die "openssl failed"; }
    mv "$new" "$dir"
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
    dir=$(inner_dir "$service")
    local environment=(
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin" "HOME=$dir" LANG=C.UTF-8
        "RABBITMQ_NODENAME=polybus-$service@localhost"
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

native_install() {
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

native_prepare() {
    local dir
    dir=$(node_dir "$1")
    as_root rm -rf --one-file-system "$dir"
    as_root mkdir -p "$dir"
    as_root chown "$(id -u):$(id -g)" "$dir"
    mkdir "$dir/mnesia" "$dir/log"
    echo '[rabbitmq_management].' >"$dir/enabled_plugins"
    write_config "$1" "$STATE/tls" >"$dir/rabbitmq.conf"
    rm -f "$STATE/$1/epmd.log" "$STATE/$1/broker.log"
}

native_start() {
    local how
    how=$(node_how "$1")
    # An epmd of its own per broker: no broker of the user's is in the way, and its end is no broker's but ours.
    pid_of "$1" epmd >/dev/null ||
        in_node "$1" spawn "$1" epmd "$how" -- epmd -address 127.0.0.1 -port "$epmd_port"
    in_node "$1" spawn "$1" broker "$how" -- $BIN/rabbitmq-server
}
# A graceful stop takes seconds and saves data that the next `up` removes.
native_stop() {
    stop_process "$1" broker KILL 10 || die "$1 does not stop"
    stop_process "$1" epmd KILL 5 || die "the epmd of $1 does not stop"
    # Where ours was killed from outside, the broker or rabbitmqctl has started another.
    # shellcheck disable=SC2046 # no word where nothing is needed
    ! port_open "$epmd_port" || in_node "$1" $(node_how "$1") -- epmd -port "$epmd_port" -kill >/dev/null 2>&1 || true
    rm -f "$STATE/$1/broker.pid" "$STATE/$1/epmd.pid"
}
native_kill() { stop_process "$1" broker KILL 10; }
native_running() { pid_of "$1" broker >/dev/null; }
native_ctl() {
    local service=$1
    shift
    # shellcheck disable=SC2046 # no word where nothing is needed
    in_node "$service" $(node_how "$service") -- $BIN/rabbitmqctl "$@"
}
native_log() { tail -n 30 "$STATE/$1/broker.log" "$(node_dir "$1")"/log/*.log 2>/dev/null || true; }

# --- Docker ---

compose() {
    # Two stacks with two state folders are two projects.
    local project
    project=polybus-$(printf '%s' "$STATE" | cksum | cut -d' ' -f1)
    (
        export POLYBUS_LOCALSTACK_DIR=$STATE
        for service in $ALL_SERVICES; do
            load_settings "$service" || eval "$(settings "$service" docker)"
            case $service in
                rabbitmq) export RABBITMQ_AMQP=$amqp_port RABBITMQ_MANAGEMENT=$management_port RABBITMQ_TLS=$tls_port ;;
                rabbitmq4) export RABBITMQ4_AMQP=$amqp_port RABBITMQ4_MANAGEMENT=$management_port ;;
            esac
        done
        docker compose --project-name "$project" --file "$HERE/compose.yaml" "$@" </dev/null
    )
}
docker_install() { :; }
docker_prepare() {
    docker_stop "$1"
    write_config "$1" /polybus-tls >"$STATE/$1/docker.conf"
}
# A container that is there is one that `restart` killed: its data stays.
docker_start() {
    if [ -n "$(compose ps --all --quiet "$1")" ]; then compose start "$1" >&2; else compose up --detach "$1" >&2; fi
}
docker_stop() { compose rm --force --stop --volumes "$1" >&2; }
docker_kill() { ! docker_running "$1" || compose kill --signal SIGKILL "$1" >&2; }
docker_running() { [ -n "$(compose ps --quiet --status running "$1" 2>/dev/null)" ]; }
docker_ctl() {
    local service=$1
    shift
    compose exec --no-TTY "$service" rabbitmqctl "$@"
}
docker_log() { compose logs --tail 30 "$1" 2>&1 || true; }

# --- either ---

answers() {
    amqp_answers "$amqp_port" &&
        { [ -z "$tls_port" ] || port_open "$tls_port"; } &&
        curl --silent --fail --max-time 3 --user guest:guest --output /dev/null "http://127.0.0.1:$management_port/api/overview"
}

running() { load_settings "$1" && "${engine}_running" "$1"; }

# False when the broker ended or the deadline passed.
await_ready() {
    load_settings "$1"
    local since=$SECONDS deadline=${2:-$READY_TIMEOUT}
    until answers; do
        running "$1" || { note "$1: the broker ended while starting"; return 1; }
        [ $((SECONDS - since)) -lt "$deadline" ] || { note "$1: not ready after $deadline s"; return 1; }
        sleep 0.1
    done
}

ready_or_die() {
    await_ready "$1" && return
    "${engine}_log" "$1" >&2
    "${engine}_stop" "$1"
    die "$1 did not start"
}

cold_start() { # SERVICE ENGINE
    # What a start cut short, or a broker that hangs, left behind goes by its own settings.
    ! load_settings "$1" || "${engine}_stop" "$1"
    mkdir -p "$STATE/$1"
    settings "$1" "$2" >"$STATE/$1/settings"
    load_settings "$1"
    "${engine}_install" "$1"
    [ -z "$tls_port" ] || make_certificates
    local port
    for port in "$amqp_port" "$management_port" $tls_port; do
        ! port_open "$port" || die "$1: port $port is taken; see localstack/README.md for the variables that move it"
    done
    "${engine}_prepare" "$1"
    "${engine}_start" "$1"
}
