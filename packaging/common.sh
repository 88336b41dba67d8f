# What the parts of packaging/build share. Sourced, never run.
# shellcheck shell=bash disable=SC2034

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${PACKAGES_OUT:-$top/target/packages}
tools=$top/target/tools
version=$(sed -n '/^version = /{s/.*"\(.*\)"$/\1/p;q}' "$top/Cargo.toml")

# Every time stamp in a package is that of the commit, so the same commit gives the same bytes.
commit_time() {
    git -C "$top" log -1 --format=%ct 2>/dev/null \
        || fail "SOURCE_DATE_EPOCH is not set, and $top is no Git checkout: set it to seconds since 1970"
}

fail() {
    printf 'packaging: %s\n' "$*" >&2
    exit 1
}

say() { printf '== %s\n' "$*"; }

# need PROGRAM HINT: fails unless PROGRAM can be run.
need() { command -v "$1" >/dev/null || fail "$1 is missing: $2"; }

# The program to package: $BLOBFERRY_BINARY, else the portable one, else the release build; of these two the newer one.
binary() {
    local file portable release
    portable=$out/blobferry-$version-linux-$(machine_arch)
    release=$top/target/release/blobferry
    [ ! "$release" -nt "$portable" ] || portable=
    for file in "${BLOBFERRY_BINARY:-}" "$portable" "$release"; do
        if [ -n "$file" ] && [ -x "$file" ]; then
            printf '%s\n' "$file"
            return 0
        fi
    done
    fail "there is no program to package: run packaging/build portable or cargo build --locked --release, or set BLOBFERRY_BINARY"
}

machine_arch() {
    case $(uname -m) in
        x86_64) echo amd64 ;;
        aarch64) echo arm64 ;;
        *) fail "there are no packages for $(uname -m)" ;;
    esac
}

# The architecture of an ELF file, by the names that Debian and OCI share.
elf_arch() {
    case $(od -An -tx2 -j18 -N2 "$1" | tr -d ' ') in
        003e) echo amd64 ;;
        00b7) echo arm64 ;;
        *) fail "$1 is no program for amd64 or arm64" ;;
    esac
}

# The newest glibc version that a program asks for.
glibc_of() {
    need objdump "install binutils"
    objdump -T "$1" | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -uV | tail -n 1
}

# The oldest glibc that the portable program starts with.
oldest_glibc=2.17

# at_most_glibc PROGRAM VERSION: fails where the program asks for a newer glibc.
at_most_glibc() {
    local newest
    newest=$(glibc_of "$1")
    [ "$(printf '%s\n' "$2" "$newest" | sort -V | tail -n 1)" = "$2" ] || fail "$1 needs glibc $newest, not $2"
}

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(commit_time)}
export SOURCE_DATE_EPOCH

rust_target() {
    case $1 in
        amd64) echo x86_64-unknown-linux-gnu ;;
        arm64) echo aarch64-unknown-linux-gnu ;;
    esac
}

# Stands in the package; a distributor sets their own.
maintainer=${PACKAGE_MAINTAINER:-blobferry maintainers <maintainers@blobferry.example>}

# unpack_root SUITE FOLDER: a small Debian with systemd. It is made once and kept below target/tools.
unpack_root() {
    local base=$tools/roots/$1.tar
    if [ ! -e "$base" ]; then
        say "a root file system of $1"
        mkdir -p "$tools/roots"
        mmdebstrap --quiet --variant=minbase --include=ca-certificates,procps,systemd,systemd-sysv,dbus "$1" "$base.new"
        mv "$base.new" "$base"
    fi
    tar -xf "$base" -C "$2"
}

# newer_deb PACKAGE RESULT: the same package with a higher version.
newer_deb() {
    local folder
    folder=$(mktemp -d)
    dpkg-deb --raw-extract "$1" "$folder/package"
    sed -i 's/^Version: .*/Version: 99-1/' "$folder/package/DEBIAN/control"
    dpkg-deb --root-owner-group -Zgzip -z1 --build "$folder/package" "$2" >/dev/null
    rm -rf "$folder"
}
