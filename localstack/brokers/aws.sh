# shellcheck shell=bash
# The service `aws`: SQS, SNS and S3 by LocalStack, from a virtual environment of its own. Sourced by lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

aws_settings() { # SERVICE ENGINE
    cat <<END
engine=$2
aws_port=$(port_setting "$1" PORT 4566)
END
}

# The keys are what LocalStack's users use; it checks none.
aws_exports() {
    load_settings "$1"
    printf "export POLYBUS_AWS_URL='aws://?region=us-east-1&endpoint=http://127.0.0.1:%s'\n" "$aws_port"
    printf "export AWS_ACCESS_KEY_ID='test'\nexport AWS_SECRET_ACCESS_KEY='test'\n"
}

# --- native ---

aws_native_install() {
    install_packages /usr/bin/curl=curl
    make_venv aws "$HERE/brokers/aws.lock.txt" "version == (3, 11)"
}

aws_native_prepare() {
    rm -rf "$STATE/aws/data" "$STATE/aws/broker.log"
    mkdir -p "$STATE/aws/data"
}

# Nothing of the caller's environment: LocalStack reads dozens of variables, and would send usage data.
aws_native_start() {
    spawn "$1" broker '' env -i "PATH=/usr/local/bin:/usr/bin:/bin" "HOME=$STATE/aws/data" LANG=C.UTF-8 \
        "FILESYSTEM_ROOT=$STATE/aws/data/fs" SERVICES=sqs,sns,s3 EAGER_SERVICE_LOADING=1 STRICT_SERVICE_LOADING=1 \
        PROVIDER_OVERRIDE_SNS=v2 SQS_DISABLE_CLOUDWATCH_METRICS=1 SQS_ENDPOINT_STRATEGY=path \
        "GATEWAY_LISTEN=127.0.0.1:$aws_port" "LOCALSTACK_HOST=127.0.0.1:$aws_port" \
        DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 DNS_ADDRESS=0 LS_LOG=warning \
        "$STATE/aws/venv/bin/python" "$HERE/brokers/aws_main.py"
}

# --- either ---

aws_compose_variables() { export AWS_PORT=$aws_port; }
aws_ports() { echo "$aws_port"; }

aws_answers() {
    local health
    health=$(aws_get /_localstack/health) || return 1
    case $health in *'"sns": "running"'*) ;; *) return 1 ;; esac
    case $health in *'"sqs": "running"'*) ;; *) return 1 ;; esac
    case $health in *'"s3": "running"'*) ;; *) return 1 ;; esac
}

aws_get() { curl --silent --fail --max-time 3 "http://127.0.0.1:$aws_port$1"; }
aws_ctl() { aws_get "$2"; }
aws_native_ctl() { aws_ctl "$@"; }
aws_docker_ctl() { aws_ctl "$@"; }
