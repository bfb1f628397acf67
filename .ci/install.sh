#!/bin/sh
# Installs mlxq with uv, for this user alone. It downloads no program of its own, runs nothing as root, changes no shell
# profile, and stops where uv is not there: how to install that is for you to choose.
#
#   sh install.sh [VERSION]
#
# Read it first. Nothing runs before its last line, so a download that was cut short does nothing.
set -eu

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

check_system() {
    case "$(uname -s)-$(uname -m)" in
    Darwin-arm64 | Linux-x86_64) ;;
    *) fail "mlxq runs on Macs with Apple silicon and on Linux x86-64, not on $(uname -s) $(uname -m)" ;;
    esac
    [ "$(id -u)" -ne 0 ] || [ "${MLXQ_AS_ROOT:-}" = yes ] || fail "run it as the user that mlxq is for, not as root"
    command -v uv >/dev/null 2>&1 ||
        fail "uv is not installed; see https://docs.astral.sh/uv/getting-started/installation/ (or: brew install uv)"
}

install_mlxq() {
    case "$1" in
    '') uv tool install mlxq ;;
    *[!0-9A-Za-z.]*) fail "$1 is no version" ;;
    *) uv tool install "mlxq==$1" ;;
    esac
}

complete_words() {
    mlxq=$(uv tool dir --bin)/mlxq
    shell=$(basename "${SHELL:-sh}")
    case "$shell" in
    bash | zsh | fish) "$mlxq" completion "$shell" --install || true ;;
    esac
}

main() {
    [ $# -le 1 ] || fail "usage: sh install.sh [VERSION]"
    check_system
    install_mlxq "${1:-}"
    complete_words
    case ":$PATH:" in
    *":$(uv tool dir --bin):"*) ;;
    *) printf 'Not on your PATH yet: %s   (uv tool update-shell)\n' "$(uv tool dir --bin)" ;;
    esac
    printf 'Next: mlxq setup\n'
}

main "$@"
