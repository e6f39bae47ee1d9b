#!/usr/bin/env bash
# postgres-standby.sh start DIR PORT: makes an asynchronous standby of the running `postgres` in DIR/data, which streams
#   from it, and prints its `export` line. What `stop` left in DIR is started again, on its data. Its application_name
#   is polybus_standby_PORT.
# postgres-standby.sh promote DIR: makes it a primary.
# postgres-standby.sh stop DIR: stops it and keeps its data. `./localstack/down postgres` stops all standbys.
# Native only. Clients of a standby have the user, password and database of `postgres`.
# shellcheck source=../lib/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/lib.sh"

action=${1:-} dir=${2:-} port=${3:-}
[ -n "$dir" ] || die "usage: postgres-standby.sh start DIR PORT | promote DIR | stop DIR"
load_settings postgres || [ "$action" = stop ] || die "postgres was not started by ./localstack/up"
# shellcheck disable=SC2154 # engine and postgres_port come from load_settings
[ "${engine:-native}" = native ] || die "a standby needs postgres without Docker: POLYBUS_LOCALSTACK_DOCKER=0"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd -P)
data=$dir/data
# Written when the data is whole.
[ ! -s "$dir/port" ] || read -r made_for <"$dir/port"
: "${made_for:=}"

psql_there() { PGCONNECT_TIMEOUT=3 "$(postgres_bin "$data")/psql" -X "$(postgres_url "$made_for")" -Atqc "$1"; }

await() { # SQL, until it answers t
    local since=$SECONDS
    until [ "$(psql_there "$1" 2>/dev/null)" = t ]; do
        pid_of postgres "standby-$made_for" >/dev/null ||
            { tail -n 30 "$STATE/postgres/standby-$made_for.log" >&2; die "the standby in $dir ended"; }
        [ $((SECONDS - since)) -lt "$READY_TIMEOUT" ] || die "the standby in $dir: not after $READY_TIMEOUT s: $1"
        sleep 0.1
    done
}

make() {
    local log=$STATE/postgres/standby-$port.basebackup.log
    running postgres || die "postgres is not running; ./localstack/up or ./localstack/restart starts it"
    postgres_end "$data"
    postgres_folder "$data"
    # --checkpoint=fast, or it waits minutes for the next one. --no-sync, because of a machine that fails nothing is kept
    # anyway. The password goes into the standby's own settings.
    in_postgres "$data" -- "$(postgres_bin "$POSTGRES_DATA")/pg_basebackup" --pgdata=. --write-recovery-conf \
        --wal-method=stream --checkpoint=fast --no-sync --no-password \
        --dbname="host=127.0.0.1 port=$postgres_port user=polybus application_name=polybus_standby_$port" \
        >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "pg_basebackup failed: $log"; }
    echo "$port" >"$dir/port"
    made_for=$port
}

case $action in
    start)
        port=${port:-$made_for}
        [ -n "$port" ] || die "start needs a port"
        [ -z "$made_for" ] || [ "$made_for" = "$port" ] || die "$dir has a standby on port $made_for, not $port"
        if ! { [ -n "$made_for" ] && pid_of postgres "standby-$port" >/dev/null; }; then
            ! port_open "$port" || die "port $port is taken"
            [ -n "$made_for" ] || make
            postgres_spawn "standby-$port" "$data" -p "$port"
        fi
        # Once it was promoted it follows no one.
        await "SELECT NOT pg_is_in_recovery() OR EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"
        printf "export POLYBUS_POSTGRES_STANDBY_URL='%s'\n" "$(postgres_url "$port")"
        ;;
    promote)
        [ -n "$made_for" ] || die "no standby in $dir"
        await "SELECT NOT pg_is_in_recovery() OR pg_promote(true, 60)"
        await "SELECT NOT pg_is_in_recovery()"
        ;;
    stop)
        [ -n "$made_for" ] || exit 0
        postgres_native_shutdown postgres "standby-$made_for" || postgres_end "$data"
        rm -f "$STATE/postgres/standby-$made_for.pid"
        ;;
    *) die "unknown action '$action'; there are: start, promote, stop" ;;
esac
