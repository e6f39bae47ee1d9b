# shellcheck shell=bash
# The certificates of the services that offer TLS. Sourced by lib.sh.

# A CA of our own, a server and a client certificate, X.509 v3 with what webpki asks for. Moved into place whole.
make_certificates() {
    command -v flock >/dev/null || { make_certificates_alone; return; }
    # Services that start at the same time share them.
    (flock 4; make_certificates_alone) 4>"$STATE/tls.lock"
}

make_certificates_alone() {
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
