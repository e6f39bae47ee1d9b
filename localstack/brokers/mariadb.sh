# shellcheck shell=bash
# The service `mariadb`: a private MariaDB, from this machine's packages. Sourced by lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

MARIADB_DATA=$STATE/mariadb/data

mariadb_settings() { # SERVICE ENGINE
    cat <<END
engine=$2
mariadb_port=$(port_setting "$1" PORT 53306)
END
}

mariadb_exports() {
    load_settings "$1"
    printf "export %s_URL='mysql://polybus:polybus@127.0.0.1:%s/polybus'\n" "$(prefix "$1")" "$mariadb_port"
}

# --- configuration ---

# ADDRESS PORT
mariadb_config() {
    cat <<END
[mariadbd]
bind-address = $1
port = $2
socket = mariadb.sock
skip-name-resolve
max-connections = 200
innodb-buffer-pool-size = 256M
innodb-flush-log-at-trx-commit = 1
character-set-server = utf8mb4
# Not that of the clock in UTC, nor one of whole hours: whoever mixes them up must notice.
default-time-zone = '+05:45'
END
}

# One statement a line, as the bootstrap wants it.
mariadb_users() {
    cat <<'END'
CREATE DATABASE IF NOT EXISTS polybus;
CREATE OR REPLACE USER polybus@'%' IDENTIFIED BY 'polybus';
GRANT ALL PRIVILEGES ON *.* TO polybus@'%' WITH GRANT OPTION;
END
}

# --- native ---

# The packages without a service: nothing of them starts by itself, now or at the next boot.
mariadb_native_install() {
    install_packages /usr/sbin/mariadbd=mariadb-server-core /usr/bin/mariadb=mariadb-client-core
}

# The server refuses to run as root unless it is told to.
mariadb_native_prepare() {
    local log=$STATE/$1/install.log
    rm -rf --one-file-system "$MARIADB_DATA"
    mkdir -p "$MARIADB_DATA"
    chmod 700 "$MARIADB_DATA"
    rm -f "$STATE/$1"/*.log
    mariadb_config 127.0.0.1 "$mariadb_port" >"$STATE/$1/native.cnf"
    {
        mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$MARIADB_DATA" --skip-test-db \
            --auth-root-authentication-method=normal &&
            # Before it listens anywhere, so that what answers is complete.
            { echo 'FLUSH PRIVILEGES;' && mariadb_users; } |
            mariadbd --no-defaults --user="$(id -un)" --datadir="$MARIADB_DATA" --bootstrap
    } >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "mariadb-install-db failed: $log"; }
}

mariadb_native_start() {
    spawn mariadb broker "" /usr/sbin/mariadbd "--defaults-file=$STATE/$1/native.cnf" --user="$(id -un)" \
        --datadir="$MARIADB_DATA"
}
# The orderly way: clients are told, and the data is complete on disk.
mariadb_native_shutdown() { stop_process "$1" broker TERM 60; }

mariadb_native_ctl() { # SERVICE ARGS…
    shift
    mariadb --no-defaults --protocol=TCP --host=127.0.0.1 --port="$mariadb_port" --user=polybus --password=polybus \
        --connect-timeout=3 polybus "$@"
}

# --- Docker ---

mariadb_docker_prepare() {
    mariadb_config '*' 3306 >"$STATE/$1/docker.cnf"
    mariadb_users >"$STATE/$1/users.sql"
}
mariadb_docker_shutdown() {
    local i
    ! docker_running "$1" || compose kill --signal SIGTERM "$1" >&2
    for i in $(seq 1 60); do
        docker_running "$1" || return 0
        sleep 1
    done
    note "$1 runs still, $i s after the signal TERM"
    return 1
}
mariadb_docker_ctl() {
    local service=$1
    shift
    compose exec --no-TTY "$service" mariadb --protocol=TCP --host=127.0.0.1 --user=polybus --password=polybus \
        --connect-timeout=3 polybus "$@"
}
mariadb_compose_variables() { export MARIADB_PORT=$mariadb_port; }

# --- either ---

mariadb_ports() { echo "$mariadb_port"; }

# A server that is starting, or recovering, accepts and then refuses.
mariadb_answers() {
    port_open "$mariadb_port" &&
        [ "$("mariadb_${engine}_ctl" "$1" --batch --skip-column-names -e 'SELECT 1' 2>/dev/null)" = 1 ]
}
