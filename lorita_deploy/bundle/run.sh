#!/bin/sh
# For a board that has trtexec but no Python packages:  sh run.sh
# Checks every file, builds an engine of each network with less and less workspace until memory suffices, and times them
# in turns. Everything is written to trtexec/: engines, logs, one times-NAME-KIND-TURN.json per run, and summary.txt.
#
# trtexec 11 times without transfers, with a CUDA graph and a spinning wait unless told otherwise; 8 to 10 do the opposite.
# Here the same is asked of all of them: "gpu" is without transfers, graph and spinning on; "e2e" is with transfers. Note
# that trtexec enqueues one inference ahead, so its times with transfers are not those of one call after another.
# Exit codes: 0 done, 2 bad input, 6 out of memory or disk.
set -u
cd "$(dirname "$0")" || exit 2

fail() { # code, what, where, what to do
    printf '%s\n  where: %s\n  do:    %s\n' "$2" "$3" "$4" >&2
    exit "$1"
}

trtexec=${TRTEXEC:-$(command -v trtexec || true)}
for place in /usr/src/tensorrt/bin/trtexec /opt/tensorrt/bin/trtexec; do
    [ -n "$trtexec" ] || { [ -x "$place" ] && trtexec=$place; }
done

# ---- every file: its digest stands in manifest.json, one "path" and one "sha256" line after another under "files"
list=$(sed -n '/"files": \[/,/^ \]/p' manifest.json 2>/dev/null |
    sed -n 's/^ *"path": "\(.*\)",$/\1/p; s/^ *"sha256": "\([0-9a-f]*\)",$/\1/p')
[ -n "$list" ] || fail 2 "the manifest cannot be read" manifest.json "unpack the bundle again"
printf '%s\n' "$list" | while read -r path && read -r digest; do
    found=$(sha256sum "$path" 2>/dev/null | cut -d ' ' -f 1)
    [ "$found" = "$digest" ] || fail 2 "sha256 is ${found:-unknown}, expected $digest; nothing was run" "$path" "copy the file again"
done || exit 2

[ -n "$trtexec" ] || fail 2 "trtexec was not found" "PATH, /usr/src/tensorrt/bin" "set TRTEXEC to where it is"
mkdir -p trtexec 2>/dev/null || fail 6 "cannot be made" trtexec "make the folder writable"

# ---- "TensorRT v8502", "[TensorRT v100300]", "[TensorRT v110100]": major version
version=$("$trtexec" --help 2>&1 | sed -n 's/.*TensorRT[. a-z]*\[*\(TensorRT \)*v\([0-9][0-9]*\).*/\2/p' | sed -n 1p)
case ${#version} in
    4) major=${version%???} ;;
    5 | 6) major=${version%????} ;;
    *) fail 2 "this trtexec does not tell its version" "$trtexec" "set TRTEXEC to another one" ;;
esac
if [ "$major" -ge 11 ]; then
    gpu=''
    e2e='--includeDataTransfers'
else
    gpu='--noDataTransfers --useCudaGraph --useSpinWait'
    e2e='--useCudaGraph --useSpinWait'
fi

# ---- build: 8.2 and 8.3 know --workspace only
workspace_flag() {
    if "$trtexec" --help 2>&1 | grep -q -e --memPoolSize; then echo "--memPoolSize=workspace:$1"; else echo "--workspace=$1"; fi
}
precision_flag() { # networks hold their precision; before TensorRT 10 the builder has to be allowed it
    precision=$(sed -n '/"artifacts": \[/,/^ \]/p' manifest.json | sed -n "/\"path\": \"$1.onnx\"/,/\"precision\"/p" |
        sed -n 's/^ *"precision": "\(.*\)",$/\1/p')
    case $major-$precision in
        8-fp16) echo --fp16 ;;
        8-int8) echo --fp16 --int8 ;;
        10-*) echo --stronglyTyped ;;
    esac
}
names=$(for file in *.onnx; do echo "${file%.onnx}"; done)
for name in $names; do
    [ -s "trtexec/$name.engine" ] && continue
    for size in 2048 1024 512 256 128 64 32 16; do
        # shellcheck disable=SC2046,SC2086 # several flags
        "$trtexec" --onnx="$name.onnx" --saveEngine="trtexec/$name.part" $(workspace_flag "$size") $(precision_flag "$name") \
            $gpu --duration=0 --iterations=1 >"trtexec/build-$name.log" 2>&1 && break
        rm -f "trtexec/$name.part"
    done
    [ -s "trtexec/$name.part" ] || fail 6 "no engine could be built" "trtexec/build-$name.log" "end other programs, or add swap"
    mv "trtexec/$name.part" "trtexec/$name.engine"
done

# ---- time in turns, there and back, so that a slow drift of the board hits all alike
{ date -u; uname -srm; cat /proc/device-tree/model 2>/dev/null; echo; nvpmodel -q 2>/dev/null; echo "TensorRT v$version"; } \
    >trtexec/board.txt
back=''
for name in $names; do back="$name $back"; done
: >trtexec/medians.txt
round=1
turn=0
while [ "$round" -le "${ROUNDS:-6}" ]; do
    for name in $names $back; do
        turn=$((turn + 1))
        for kind in gpu e2e; do
            flags=$gpu
            [ $kind = e2e ] && flags=$e2e
            # shellcheck disable=SC2086 # several flags
            "$trtexec" --loadEngine="trtexec/$name.engine" $flags --warmUp=500 --duration=3 --avgRuns=1 \
                --exportTimes="trtexec/times-$name-$kind-$turn.json" >"trtexec/time-$name.log" 2>&1 ||
                fail 2 "trtexec failed" "trtexec/time-$name.log" "read its last lines"
            median=$(sed -n "s/.*$([ $kind = gpu ] && echo 'GPU Compute Time' || echo '\] Latency'):.* median = \([0-9.]*\) ms.*/\1/p" \
                "trtexec/time-$name.log")
            echo "$turn $name $kind $median" >>trtexec/medians.txt
        done
    done
    round=$((round + 1))
done
for name in $names; do
    for kind in gpu e2e; do
        awk -v name="$name" -v kind=$kind '$2 == name && $3 == kind { print $4 }' trtexec/medians.txt | sort -n |
            awk -v name="$name" -v kind=$kind '{ at[NR] = $1 }
                END { print name, kind "_ms", at[int((NR + 1) / 2)], "n", NR, "from", at[1], "to", at[NR] }'
    done
done >trtexec/times.txt
for kind in gpu e2e; do
    sort -k 3 -n trtexec/times.txt | awk -v kind=${kind}_ms '$2 == kind { print "lowest median", kind ":", $1; exit }'
done | cat trtexec/times.txt - | tee trtexec/summary.txt
