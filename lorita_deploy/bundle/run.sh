#!/bin/sh
# For a board that has trtexec but no Python packages:  sh run.sh
# Checks every file, builds an engine of each network with less and less workspace until memory suffices, and times them
# in turns. Everything is written to trtexec/: engines, logs, trtexec's own times of every run, conditions, race.txt. The
# times are packed as trtexec-DATE.tar.gz, of which  lorita-deploy bench --receipt  makes a receipt elsewhere.
#
# trtexec 11 times without transfers, with a CUDA graph and a spinning wait unless told otherwise; 8 to 10 do the opposite.
# Here the same is asked of all of them: "gpu" is without transfers, graph and spinning on; "e2e" is with transfers. Note
# that trtexec enqueues one inference ahead, so its times with transfers are not those of one call after another.
# ROUNDS=6 (default) times every network twelve times, in a process of its own each time.
# Exit codes: 0 done, 2 bad input, 3 no trtexec here, 6 out of memory or disk, or another run is at work here.
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
sha256() { sha256sum "$1" 2>/dev/null | cut -d ' ' -f 1; }
sha256sum -c manifest.json.sha256 >/dev/null 2>&1 ||
    fail 2 "the manifest is missing or was changed; nothing was run" manifest.json "unpack the bundle again"
list=$(sed -n '/"files": \[/,/^ \]/p' manifest.json 2>/dev/null |
    sed -n 's/^ *"path": "\(.*\)",$/\1/p; s/^ *"sha256": "\([0-9a-f]*\)",$/\1/p')
[ -n "$list" ] || fail 2 "the manifest cannot be read" manifest.json "unpack the bundle again"
printf '%s\n' "$list" | while read -r path && read -r digest; do
    found=$(sha256 "$path")
    [ "$found" = "$digest" ] || fail 2 "sha256 is ${found:-unknown}, expected $digest; nothing was run" "$path" "copy the file again"
done || exit 2

[ -n "$trtexec" ] || fail 3 "trtexec was not found" "PATH, /usr/src/tensorrt/bin" "set TRTEXEC to where it is"
mkdir -p trtexec 2>/dev/null || fail 6 "cannot be made" trtexec "make the folder writable"
if command -v flock >/dev/null; then # the same lock that run.py takes
    exec 9<.
    flock -n 9 || fail 6 "another run is at work in this folder" "$(pwd)" "wait for it to end"
fi

# ---- "TensorRT v8502", "[TensorRT v100300]", "[TensorRT v110100]": major version
version=$("$trtexec" --help 2>&1 | sed -n 's/.*TensorRT[. a-z]*\[*\(TensorRT \)*v\([0-9][0-9]*\).*/\2/p' | sed -n 1p)
case ${#version} in
    4) major=${version%???} ;;
    5 | 6) major=${version%????} ;;
    *) fail 3 "this trtexec does not tell its version" "$trtexec" "set TRTEXEC to another one" ;;
esac
if [ "$major" -ge 11 ]; then
    gpu=''
    e2e='--includeDataTransfers'
else
    gpu='--noDataTransfers --useCudaGraph --useSpinWait'
    e2e='--useCudaGraph --useSpinWait'
fi

# ---- what happens goes to race.txt line by line: a word, then what belongs to it; "finished" is the last one
rm -f trtexec/race.txt trtexec/race.part trtexec/times-*.json trtexec/time-*.log
say() { echo "$*" >>trtexec/race.part || fail 6 "cannot be written" trtexec/race.part "make room, or make the folder writable"; }
first_line() { sed -n '1{s/\r*$//;p;}' "$1" 2>/dev/null | tr -d '\000'; }
now() { date -u +%Y-%m-%dT%H:%M:%SZ; }
load() { cut -d ' ' -f 1 /proc/loadavg 2>/dev/null; }
conditions() { # readings in the files' own units: Hz for devices, kHz for cores, thousandths of a degree
    say "conditions $1"
    mode=$(nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: *//p' | sed -n 1p)
    [ -z "$mode" ] || say "power_mode $mode"
    for each in /sys/class/devfreq/* /sys/devices/system/cpu/cpufreq/policy*; do
        prefix=$each/ && [ -e "$each/cur_freq" ] || prefix=$each/scaling_
        [ ! -e "${prefix}cur_freq" ] || say "clock ${each##*/}" \
            "$(first_line "${prefix}cur_freq") $(first_line "${prefix}min_freq") $(first_line "${prefix}max_freq")"
    done
    for each in /sys/class/thermal/thermal_zone*; do
        value=$(first_line "$each/temp")
        [ -z "$value" ] || say "temperature $value $(first_line "$each/type")"
    done
    for each in /sys/class/hwmon/hwmon*/oc*_event_cnt /sys/class/hwmon/hwmon*/curr*_crit_alarm \
        /sys/class/hwmon/hwmon*/curr*_max_alarm; do
        value=$(first_line "$each")
        [ -z "$value" ] || say "throttle $value ${each#/sys/class/}"
    done
}
say "lorita-deploy/trtexec-race/1"
say "started $(now)"
say "trtexec v$version"
model=$(first_line /proc/device-tree/model)
[ -z "$model" ] || say "board $model"
say "processor $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | sed -n 1p)"
say "system $(uname -s) $(uname -r) $(uname -m)"
say "cores $(grep -c '^processor' /proc/cpuinfo 2>/dev/null)"
say "memory_kb $(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null)"
[ ! -e /etc/nv_tegra_release ] || say "l4t $(first_line /etc/nv_tegra_release)"
say "load_before $(load)"

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
engine_of() { echo "trtexec/$1-v$version-$(sha256 "$1.onnx" | cut -c 1-16).engine"; } # none of another network or version
names=$(for file in *.onnx; do echo "${file%.onnx}"; done)
for name in $names; do
    engine=$(engine_of "$name")
    if [ ! -s "$engine" ] || [ ! -s "$engine.txt" ]; then
        for size in 2048 1024 512 256 128 64 32 16; do
            begun=$(date +%s)
            # shellcheck disable=SC2046,SC2086 # several flags
            "$trtexec" --onnx="$name.onnx" --saveEngine="trtexec/$name.part" $(workspace_flag "$size") $(precision_flag "$name") \
                $gpu --duration=0 --iterations=1 >"trtexec/build-$name.log" 2>&1 && break
            ended=$?
            rm -f "trtexec/$name.part"
            # ended by a signal, it most likely wanted memory too; of anything else less workspace does not help
            [ "$ended" -ge 128 ] || grep -qiE 'out ?of ?memory|bad_alloc|insufficient memory' "trtexec/build-$name.log" ||
                fail 2 "trtexec cannot build an engine of it" "$name.onnx" "read the last lines of trtexec/build-$name.log"
        done
        [ -s "trtexec/$name.part" ] ||
            fail 6 "no engine could be built" "trtexec/build-$name.log" "end other programs, or add swap"
        mv "trtexec/$name.part" "$engine"
        echo "$size $(($(date +%s) - begun))" >"$engine.txt"
    fi
    say "network $name $(sha256 "$name.onnx")"
    say "engine $name $(sha256 "$engine") $(wc -c <"$engine" | tr -d ' ') $(cat "$engine.txt")"
done

# ---- time in turns, there and back, so that a slow drift of the board hits all alike
back=''
for name in $names; do back="$name $back"; done
conditions start
round=1
turn=0
while [ "$round" -le "${ROUNDS:-6}" ]; do
    for direction in there back; do
        turn=$((turn + 1))
        order=$names
        [ $direction = there ] || order=$back
        for name in $order; do
            engine=$(engine_of "$name")
            for kind in gpu e2e; do
                flags=$gpu
                [ $kind = gpu ] || flags=$e2e
                log=trtexec/time-$name-$kind-$turn.log
                # shellcheck disable=SC2086 # several flags
                "$trtexec" --loadEngine="$engine" $flags --warmUp=500 --duration=1 --iterations=100 --avgRuns=100 \
                    --exportTimes="trtexec/times-$name-$kind-$turn.json" >"$log" 2>&1 ||
                    fail 2 "trtexec failed" "$log" "read its last lines"
                say "turn $turn $name $kind"
            done
        done
    done
    conditions "round $round"
    round=$((round + 1))
done
say "load_after $(load)"
say "finished $(now)"
mv trtexec/race.part trtexec/race.txt
cp manifest.json trtexec/manifest.json

# ---- what a person reads, and what is carried home
for kind in gpu e2e; do
    word='GPU Compute Time'
    [ $kind = gpu ] || word='\] Latency'
    for name in $names; do
        sed -n "s/.*$word:.* median = \([0-9.]*\) ms.*/\1/p" trtexec/time-"$name"-$kind-*.log | sort -n |
            awk -v name="$name" -v kind=${kind}_ms '{ at[NR] = $1 }
                END { print kind, name, at[int((NR + 1) / 2)], "of", NR, "runs from", at[1], "to", at[NR] }'
    done | sort -k 3 -n
done >trtexec/summary.txt
cat trtexec/summary.txt
results=trtexec-$(date -u +%Y%m%dT%H%M%SZ).tar.gz
if tar -cf - trtexec/manifest.json trtexec/race.txt trtexec/*.log trtexec/times-*.json | gzip -1 >"$results.part" &&
    [ -s "$results.part" ]; then
    mv "$results.part" "$results"
    echo "$results: lorita-deploy bench --receipt $results makes a receipt of it"
else
    rm -f "$results.part"
    echo "trtexec/: lorita-deploy bench --receipt trtexec makes a receipt of it, wherever that folder is carried"
fi
