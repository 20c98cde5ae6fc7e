#!/usr/bin/env bash
# Builds check_kernels.c with the kernels for aarch64 and x86-64 and runs it natively, if this is either, and on emulated
# cores from before and after each kernel set's instructions. Any failure ends it with a status.
#
# Debian: apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross (on x86-64).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
kernels=$here/../../Sources/CEdgeKernels
swift=$(command -v swift || true)
clang=$(command -v clang || true)
[ -n "$clang" ] || clang=$(dirname "$(readlink -f "$swift")")/clang
[ -x "$clang" ] || { echo "no clang on PATH or beside swift" >&2; exit 1; }

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

build() { # program, architecture, flags
    local program=$1 architecture=$2
    shift 2
    echo "building $program"
    # The flags of Package.swift's CEdgeKernels: a contracted multiply-add would change bits.
    "$clang" "--target=$architecture-linux-gnu" -O3 -ffp-contract=off -Wall -Wextra -static -I"$kernels/include" "$@" \
        "$here/check_kernels.c" "$kernels"/*.c "$kernels"/*/*.c -o "$work/$program" -lm
}

run() { # program, emulator, arguments
    local program=$1 emulator=$2 begun=$SECONDS
    shift 2
    echo "$program: ${emulator:-native} $*"
    # shellcheck disable=SC2086 # an emulator is a command with arguments, or nothing
    $emulator "$work/$program" "$@"
    echo "  $((SECONDS - begun)) s"
}

build x86_64 x86_64
build aarch64 aarch64
case $(uname -m) in
x86_64)
    run x86_64 ""
    # Where there is AVX-512 with VNNI, which the set builds on.
    build x86_64-emulated-amx x86_64 "-DEDGE_EMULATED_AMX=\"$here/emulated_amx.h\""
    run x86_64-emulated-amx ""
    ;;
aarch64) run aarch64 "" ;;
esac

# Minutes of one processor each: one architecture beside the other.
for core in cortex-a53 cortex-a76 max; do run aarch64 "qemu-aarch64 -cpu $core"; done >"$work/aarch64.log" 2>&1 &
run x86_64 "qemu-x86_64 -cpu Nehalem"
# With denormals flushed QEMU's vcvtph2ps makes subnormal halves 0, which no processor does: the Intel manual has it
# ignore MXCSR.DAZ. The native run covers flushing.
run x86_64 "qemu-x86_64 -cpu Haswell" keep-denormals
status=0
wait $! || status=$?
cat "$work/aarch64.log"
exit $status
