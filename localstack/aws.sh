# shellcheck shell=bash
# The service `aws`: SQS and SNS by LocalStack, from a virtual environment of its own. Sourced by lib.sh.
# shellcheck disable=SC2154 # the settings come from load_settings

AWS_LOCK=$HERE/aws.lock.txt
AWS_VENV=$STATE/aws/venv

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

# The lock is for Python 3.11. A pyenv shim may be there and refuse, hence the call.
aws_python() {
    local python
    for python in python3.11 python3 /usr/bin/python3.11; do
        ! "$python" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 ||
            { echo "$python"; return; }
    done
    return 1
}

aws_native_install() {
    local python log=$STATE/aws/pip.log
    install_packages /usr/bin/curl=curl
    ! cmp -s "$AWS_LOCK" "$AWS_VENV/installed" || return 0
    if ! aws_python >/dev/null; then
        # Debian 12's own Python, which may lack venv. Elsewhere apt knows no such package and says so.
        install_packages /usr/bin/python3.11=python3.11 /usr/lib/python3.11/ensurepip/__init__.py=python3.11-venv
    fi
    python=$(aws_python) || die "aws: needs Python 3.11 with venv and pip, as python3.11 on the PATH (or Docker)"
    note "aws: installing LocalStack into $AWS_VENV, once (about half a minute)"
    rm -rf "$AWS_VENV"
    { "$python" -m venv "$AWS_VENV" && "$AWS_VENV/bin/python" -m pip install --no-deps --requirement "$AWS_LOCK"; } \
        </dev/null >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "pip failed: $log"; }
    # Last, so that an installation that was cut short is never taken for a good one.
    cp "$AWS_LOCK" "$AWS_VENV/installed"
}

aws_native_prepare() {
    rm -rf "$STATE/aws/data" "$STATE/aws/broker.log"
    mkdir -p "$STATE/aws/data"
}

# Nothing of the caller's environment: LocalStack reads dozens of variables, and would send usage data.
aws_native_start() {
    spawn "$1" broker '' env -i "PATH=/usr/local/bin:/usr/bin:/bin" "HOME=$STATE/aws/data" LANG=C.UTF-8 \
        "FILESYSTEM_ROOT=$STATE/aws/data/fs" SERVICES=sqs,sns EAGER_SERVICE_LOADING=1 STRICT_SERVICE_LOADING=1 \
        PROVIDER_OVERRIDE_SNS=v2 SQS_DISABLE_CLOUDWATCH_METRICS=1 SQS_ENDPOINT_STRATEGY=path \
        "GATEWAY_LISTEN=127.0.0.1:$aws_port" "LOCALSTACK_HOST=127.0.0.1:$aws_port" \
        DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 DNS_ADDRESS=0 LS_LOG=warning \
        "$AWS_VENV/bin/python" "$HERE/aws_main.py"
}

# --- either ---

aws_compose_variables() { export AWS_PORT=$aws_port; }
aws_ports() { echo "$aws_port"; }

aws_answers() {
    local health
    health=$(aws_get /_localstack/health) || return 1
    case $health in *'"sns": "running"'*) ;; *) return 1 ;; esac
    case $health in *'"sqs": "running"'*) ;; *) return 1 ;; esac
}

aws_get() { curl --silent --fail --max-time 3 "http://127.0.0.1:$aws_port$1"; }
aws_ctl() { aws_get "$2"; }
aws_native_ctl() { aws_ctl "$@"; }
aws_docker_ctl() { aws_ctl "$@"; }
