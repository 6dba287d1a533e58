#!/bin/sh
# Runs a bundle on an arm64 userland (Debian under qemu-user): what ships starts there, and its golden outputs come out.
#
#   sh benchmarks/arm64_bundle.sh BUNDLE [ROOT]      as root, on Debian or Ubuntu; PYTHON=... to use another python3 with pip
#
# BUNDLE is an unpacked bundle of a small CNN; ROOT (default: ./arm64-root) is made on the first run and used again.
# Emulated times are not latencies: the bundle is verified, not raced, and no time is kept.
set -eu

bundle=$(cd "${1:?usage: arm64_bundle.sh BUNDLE [ROOT]}" && pwd)
root=${2:-arm64-root}
suite=bookworm
python_version=3.11
binfmt=/proc/sys/fs/binfmt_misc

need() { command -v "$1" >/dev/null || apt-get install -y -qq "$2" >/dev/null; }
need qemu-aarch64-static qemu-user-static
need debootstrap debootstrap

# The kernel hands every arm64 program to qemu. F: qemu is opened now, so that it is found inside the root, too.
[ -e "$binfmt/register" ] || mount -t binfmt_misc binfmt_misc "$binfmt"
if ! [ -e "$binfmt/qemu-aarch64" ]; then
    magic='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):OCF" >"$binfmt/register"
fi

if ! [ -x "$root/usr/bin/python3" ]; then
    debootstrap --arch=arm64 --variant=minbase --include=python3 "$suite" "$root" >"$root.log" 2>&1 ||
        { tail -5 "$root.log" >&2; exit 1; }
fi
if ! [ -d "$root/opt/packages/onnxruntime" ]; then
    "${PYTHON:-python3}" -m pip install -q --target "$root/opt/packages" --python-version "$python_version" \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        --only-binary=:all: onnxruntime
fi

rm -rf "$root/opt/bundle"
cp -R "$bundle" "$root/opt/bundle"
[ -e "$root/proc/self" ] || mount -t proc proc "$root/proc"
trap 'umount "$root/proc" 2>/dev/null || true' EXIT
arm64() { timeout 600 chroot "$root" /usr/bin/env PYTHONPATH=/opt/packages OMP_NUM_THREADS=1 "$@"; }
echo "machine: $(arm64 uname -m), $(arm64 python3 --version)"
arm64 python3 /opt/bundle/run.py --verify-only --runtime onnxruntime
arm64 python3 - <<'PYTHON'
import json

receipt = json.load(open("/opt/bundle/verification.json", encoding="utf-8"))
print("onnxruntime %s on %s" % (receipt["host"]["versions"]["onnxruntime"], receipt["host"]["system"].split()[-1]))
for each in receipt["artifacts"]:
    print("%s: verified, largest relative difference %.1e" % (each["name"], each["max_rel"]))
PYTHON
