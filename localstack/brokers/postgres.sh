# shellcheck shell=bash
# The service `postgres`: a private PostgreSQL, from this machine's package. postgres-standby.sh makes a standby of it
# with the functions of this file. Sourced by lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

POSTGRES_LIB=/usr/lib/postgresql
POSTGRES_DATA=$STATE/postgres/data

postgres_settings() { # SERVICE ENGINE
    cat <<END
engine=$2
postgres_port=$(port_setting "$1" PORT 55432)
END
}

postgres_url() { echo "postgres://polybus:polybus@127.0.0.1:$1/polybus"; } # PORT

# The second is where a test finds initdb, pg_basebackup and pg_ctl. It is empty with Docker.
postgres_exports() {
    load_settings "$1"
    local name bin=
    name=$(prefix "$1")
    [ "$engine" = docker ] || bin=$(postgres_bin "$POSTGRES_DATA")
    printf "export %s_URL='%s'\nexport %s_BIN='%s'\n" "$name" "$(postgres_url "$postgres_port")" "$name" "$bin"
}

# --- configuration ---

# ADDRESS PORT
postgres_config() {
    cat <<END
listen_addresses = '$1'
port = $2
unix_socket_directories = ''
max_connections = 200
shared_buffers = 256MB
fsync = on
synchronous_commit = on
max_prepared_transactions = 20
wal_level = replica
max_wal_senders = 8
# A standby that was away for a moment must find what it missed.
wal_keep_size = 512MB
hot_standby = on
password_encryption = 'scram-sha-256'
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d/%a '
END
}

# `all` does not name replication.
postgres_hba() {
    cat <<'END'
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
END
}

# --- native ---

# DATA: the programs of the version that made the data, or of the newest that is installed. Nothing where there is none.
postgres_bin() {
    local version=
    if [ -s "$1/PG_VERSION" ]; then
        version=$(cat "$1/PG_VERSION")
    else
        # The client's package makes the folder too.
        version=$(for program in "$POSTGRES_LIB"/*/bin/postgres; do
            [ ! -x "$program" ] || basename "${program%/bin/postgres}"
        done | sort -V | tail -n 1)
    fi
    [ -z "$version" ] || echo "$POSTGRES_LIB/$version/bin"
}

postgres_native_install() {
    local bin
    bin=$(postgres_bin none)
    # The package without a version brings the version of this release.
    [ -n "$bin" ] || install_packages "$POSTGRES_LIB/none=postgresql"
}

# DATA HOW… -- COMMAND…: runs it in the data folder and with nothing of our environment. PostgreSQL refuses to run as
# root, so then it is the package's user, which owns the data. That user may not reach the folder, for example under
# /root. Hence it sees the folder as /mnt, in a mount namespace that goes with the process.
in_postgres() {
    local data=$1 how=() environment=("PATH=/usr/sbin:/usr/bin:/sbin:/bin" LANG=C.UTF-8 "PGPASSWORD=polybus")
    shift
    while [ "$1" != -- ]; do how+=("$1"); shift; done
    shift
    if [ "$(id -u)" = 0 ]; then
        # shellcheck disable=SC2016 # expanded by the inner shell
        ${how[@]+"${how[@]}"} unshare --mount bash -c 'mount --bind "$0" /mnt && cd /mnt && exec "$@"' "$data" \
            setpriv --reuid=postgres --regid=postgres --init-groups env -i "${environment[@]}" HOME=/mnt "$@"
    else
        # shellcheck disable=SC2016 # expanded by the inner shell
        ${how[@]+"${how[@]}"} bash -c 'cd "$0" && exec "$@"' "$data" env -i "${environment[@]}" "HOME=$data" "$@"
    fi
}

# An empty data folder of whom the server runs as.
postgres_folder() { # DATA
    rm -rf --one-file-system "$1"
    mkdir -p "$1"
    chmod 700 "$1"
    [ "$(id -u)" != 0 ] || chown postgres:postgres "$1"
}

# Every process of the server works in its data folder. Its children outlive it when it is killed, and as long as one
# of them does, no other server starts on the data.
postgres_processes() { # DATA
    local process
    for process in /proc/[0-9]*; do
        [ "$process/cwd" -ef "$1" ] || continue
        # Not a shell that somebody opened there.
        [ "$(cat "$process/comm" 2>/dev/null)" != postgres ] || echo "${process#/proc/}"
    done
}
postgres_end() { # DATA
    local i pids
    for i in $(seq 1 200); do
        pids=$(postgres_processes "$1")
        # After that the file tells of no one, and its number may be a stranger's by now.
        [ -n "$pids" ] || { rm -f "$1/postmaster.pid"; return; }
        # shellcheck disable=SC2086 # a list of words
        kill -KILL $pids 2>/dev/null || true
        sleep 0.05
    done
    note "postgres: $pids outlived the signal KILL after $i tries"
    return 1
}

# NAME DATA ARGS…: one server, as the process NAME of this service. Its log is what it writes to standard error.
postgres_spawn() {
    local name=$1 data=$2
    shift 2
    postgres_end "$data"
    in_postgres "$data" spawn postgres "$name" "" -- "$(postgres_bin "$data")/postgres" -D . "$@"
}

postgres_native_prepare() {
    local bin log=$STATE/$1/initdb.log
    bin=$(postgres_bin none)
    postgres_folder "$POSTGRES_DATA"
    rm -f "$STATE/$1"/*.log
    {
        in_postgres "$POSTGRES_DATA" -- "$bin/initdb" -D . --username=polybus --encoding=UTF8 --locale=C --auth=trust &&
            # After its own lines, which say what this machine can do; the later line counts.
            postgres_config 127.0.0.1 "$postgres_port" >>"$POSTGRES_DATA/postgresql.conf" &&
            postgres_hba >"$POSTGRES_DATA/pg_hba.conf" &&
            # Before it listens anywhere, so that what answers is complete. One statement a line.
            printf '%s\n' "ALTER ROLE polybus PASSWORD 'polybus'" "CREATE DATABASE polybus" |
            in_postgres "$POSTGRES_DATA" -- "$bin/postgres" --single -D . -c exit_on_error=on postgres
    } >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "initdb failed: $log"; }
}

postgres_native_start() { postgres_spawn broker "$POSTGRES_DATA"; }
postgres_native_kill() { postgres_end "$POSTGRES_DATA"; }
# The standbys go too: they can follow nothing that comes after.
postgres_native_stop() {
    local file name
    for file in "$STATE/$1"/*.pid; do
        [ -e "$file" ] || continue
        name=$(basename "$file" .pid)
        stop_process "$1" "$name" KILL 10 || die "$name of $1 does not stop"
        rm -f "$file"
    done
    postgres_end "$POSTGRES_DATA" || die "$1 does not stop"
}
# The orderly way: clients are told, and the data is complete on disk.
postgres_native_shutdown() { stop_process "$1" "${2:-broker}" INT 60; } # SERVICE [NAME]

postgres_native_ctl() { # SERVICE ARGS…
    shift
    "$(postgres_bin "$POSTGRES_DATA")/psql" -X "$(postgres_url "$postgres_port")" "$@"
}

# --- Docker ---

postgres_docker_prepare() { postgres_config '*' 5432 >"$STATE/$1/docker.conf"; }
postgres_docker_shutdown() {
    local i
    ! docker_running "$1" || compose kill --signal SIGINT "$1" >&2
    for i in $(seq 1 60); do
        docker_running "$1" || return 0
        sleep 1
    done
    note "$1 runs still, $i s after the signal INT"
    return 1
}
postgres_docker_ctl() {
    local service=$1
    shift
    compose exec --no-TTY "$service" psql -X "$(postgres_url 5432)" "$@"
}
postgres_compose_variables() { export POSTGRES_PORT=$postgres_port; }

# --- either ---

postgres_ports() { echo "$postgres_port"; }

# A server that is starting, or recovering, accepts and then refuses.
postgres_answers() {
    port_open "$postgres_port" &&
        [ "$(PGCONNECT_TIMEOUT=3 "postgres_${engine}_ctl" "$1" -Atqc 'SELECT 1' 2>/dev/null)" = 1 ]
}
