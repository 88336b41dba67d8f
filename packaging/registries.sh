# Registries on loopback for the checks of packages. Sourced after common.sh, never run. The caller sets `work`, a scratch
# folder, and calls `end_registries` when it ends.
# shellcheck shell=bash disable=SC2154

started=()

until_true() {
    local what=$1
    shift
    for _ in $(seq 200); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    fail "waited in vain until $what: $(cat "$work/log" 2>/dev/null)"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# registry PORT
registry() {
    local port=$1
    printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:%s"}\nlog: {level: error}\n' \
        "$work/registry-$port" "$port" >"$work/$port.yml"
    docker-registry serve "$work/$port.yml" >/dev/null 2>&1 &
    started+=("$!")
    until_true "the registry at $port answers" curl -sf "http://127.0.0.1:$port/v2/"
}

end_registries() { [ ${#started[@]} = 0 ] || kill "${started[@]}" 2>/dev/null || true; }
