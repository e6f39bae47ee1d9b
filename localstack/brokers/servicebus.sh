# shellcheck shell=bash
# The service `servicebus`: our own emulator of Azure Service Bus, built by cargo from servicebus-emulator/. Sourced by
# lib.sh. With POLYBUS_SERVICEBUS_OFFICIAL=1 it is Microsoft's, by Compose, on the same Config.json.
# shellcheck disable=SC2154 # the settings come from load_settings

SERVICEBUS_CONFIG=$HERE/brokers/servicebus/Config.json

# Our emulator needs no Docker, so it runs natively even where an engine answers.
servicebus_engine() { if [ "${POLYBUS_SERVICEBUS_OFFICIAL:-0}" = 1 ]; then echo docker; else echo native; fi; }

servicebus_settings() { # SERVICE ENGINE
    cat <<END
engine=$2
amqp_port=$(port_setting "$1" PORT 5692)
http_port=$(port_setting "$1" HTTP_PORT 5300)
END
}

# Name and key are the official emulator's.
servicebus_exports() {
    load_settings "$1"
    local name=RootManageSharedAccessKey key=SAS_KEY_VALUE
    printf "export POLYBUS_SERVICEBUS_URL='servicebus://%s:%s@127.0.0.1:%s?emulator=true&management=http://127.0.0.1:%s'\n" \
        "$name" "$key" "$amqp_port" "$http_port"
    printf "export POLYBUS_SERVICEBUS_REST_URL='servicebus://%s:%s@127.0.0.1:%s?emulator=true'\n" "$name" "$key" "$http_port"
    printf "export POLYBUS_SERVICEBUS_CONNECTION_STRING='Endpoint=sb://127.0.0.1:%s;SharedAccessKeyName=%s;SharedAccessKey=%s;UseDevelopmentEmulator=true;'\n" \
        "$amqp_port" "$name" "$key"
}

# --- native ---

# Built with the same command as the tests, because Cargo chooses features by the selected packages. With another
# command the tests would compile everything again.
servicebus_native_install() {
    install_packages /usr/bin/curl=curl /usr/bin/openssl=openssl
    make_certificates
    command -v cargo >/dev/null || die "$1: needs cargo to build the emulator; see https://rustup.rs"
    local log=$STATE/$1/cargo.log target
    note "$1: building the emulator"
    (
        cd "$HERE/.."
        cargo test --workspace --all-features --no-run --test official_sdks
    ) </dev/null >"$log" 2>&1 || { tail -n 40 "$log" >&2; die "cargo failed: $log"; }
    target=$(cd "$HERE/.." && cargo metadata --no-deps --format-version 1 | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')
    # A copy, so that a later build does not change what `restart` starts.
    cp "$target/debug/polybus-servicebus-emulator" "$STATE/$1/emulator.new"
    mv "$STATE/$1/emulator.new" "$STATE/$1/emulator"
}

servicebus_native_prepare() { rm -f "$STATE/$1/broker.log"; }

servicebus_native_start() {
    spawn "$1" broker '' "$STATE/$1/emulator" --config "$SERVICEBUS_CONFIG" \
        --amqp "127.0.0.1:$amqp_port" --http "127.0.0.1:$http_port" \
        --tls-cert "$STATE/tls/server.pem" --tls-key "$STATE/tls/server.key"
}

# --- Docker ---

servicebus_docker_prepare() {
    [ "${ACCEPT_EULA:-}" = Y ] || die "$1: Microsoft's emulator and SQL Server ask for ACCEPT_EULA=Y; their terms are yours to accept"
}
servicebus_docker_stop() { compose rm --force --stop --volumes "$1" servicebus-sql >&2; }
servicebus_compose_variables() { export SERVICEBUS_AMQP=$amqp_port SERVICEBUS_HTTP=$http_port SERVICEBUS_CONFIG; }

# --- either ---

servicebus_ports() { echo "$amqp_port $http_port"; }
servicebus_answers() {
    port_open "$amqp_port" &&
        curl --silent --fail --max-time 3 --output /dev/null "http://127.0.0.1:$http_port/health"
}
servicebus_native_ctl() { curl --silent --fail --max-time 3 "http://127.0.0.1:$http_port$2"; }
servicebus_docker_ctl() { servicebus_native_ctl "$@"; }
