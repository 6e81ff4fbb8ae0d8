#!/bin/bash
# Faults of the environment that need a mount or a signal: full disks, file-size limits,
# read-only file systems, odd path names, interrupts.
#
#   sudo tests/faults.sh [BIN]          BIN: the folder of the binaries, target/release
#
# Every fault ends with one clear error or none, and the next run ends with the bytes of an
# undisturbed one. docs/reliability.md has the result.
set -u
cd "$(dirname "$0")/.." || exit 1
BIN=$(realpath "${1:-target/release}")
WORK=$(mktemp -d)
trap 'umount "$WORK"/disk 2>/dev/null; rm -rf "$WORK"' EXIT
STAGES=(dataset pretrain activations cluster)
SMALL=(--profile smoke --set seeds=[1] --set pretrain.optim.steps=60
       --set pretrain.optim.checkpoint_every=20 --quiet)
tried=0 survived=0

# Runs the first stages into $1; the errors go to $WORK/error.
pipeline() {
  for stage in "${STAGES[@]}"; do
    "$BIN/upcycle-$stage" "${SMALL[@]}" --artifacts "$1" 2>"$WORK/error" || return $?
  done
}

# Digests of all results of $1.
digests() { grep -rh --include=manifest.json -o '"tree": *"[0-9a-f]*"' "$1" | sort; }

# verdict NAME CONDITION: CONDITION is run.
verdict() {
  tried=$((tried + 1))
  if eval "$2"; then survived=$((survived + 1)); echo "ok    $1"
  else echo "LOST  $1: $2"; head -c 600 "$WORK/error"; fi
}

same() { [ "$(digests "$1")" = "$TRUTH" ]; }
clear() { # one error, no panic, nothing published half
  ! grep -q panicked "$WORK/error" && grep -q "$1" "$WORK/error"
}

pipeline "$WORK/plain" || { cat "$WORK/error"; exit 1; }
TRUTH=$(digests "$WORK/plain")

mkdir "$WORK/disk"
mount -t tmpfs -o size=1g none "$WORK/disk" || exit 1
for kib in 16 64 128 256 384 512 768 1024 1536 2048 3072 4096; do
  rm -rf "$WORK/disk"/*
  mount -o "remount,size=${kib}k" "$WORK/disk"
  if pipeline "$WORK/disk/a"; then said='true'
  else said='clear "No space left"'; fi
  verdict "disk of $kib KiB: says so" "$said"
  mount -o remount,size=1g "$WORK/disk"
  pipeline "$WORK/disk/a"
  verdict "disk of $kib KiB: next run" 'same "$WORK/disk/a"'
done

for blocks in 1 8 32 64 128 256 1024; do
  rm -rf "$WORK/limit"
  if (trap '' XFSZ; ulimit -f $blocks; pipeline "$WORK/limit"); then said='true'
  else said='clear "File too large"'; fi
  verdict "files of at most $blocks KiB: says so" "$said"
  pipeline "$WORK/limit"
  verdict "files of at most $blocks KiB: next run" 'same "$WORK/limit"'
done

mount -o remount,ro "$WORK/disk"
pipeline "$WORK/disk/a"
verdict "read-only and fresh: rests" "[ $? = 0 ]"
"$BIN/upcycle-pretrain" "${SMALL[@]}" --set pretrain.optim.steps=61 \
  --artifacts "$WORK/disk/a" 2>"$WORK/error"
verdict "read-only and stale: says so" "[ $? = 1 ] && clear 'Read-only file system'"
mount -o remount,rw "$WORK/disk"

for name in 'with blank' "quote'and\"dollar\$(x)" 'ümläut' $'new\nline' '-dash'; do
  pipeline "$WORK/odd/$name"
  verdict "folder named $(printf %q "$name")" 'same "$WORK/odd/$name"'
done

for wait in 0.1 0.3 0.6; do
  # A script's background jobs ignore interrupts; env undoes that.
  env --default-signal=INT "$BIN/upcycle-pretrain" --profile smoke --set seeds=[1] \
    --artifacts "$WORK/plain" \
    --set pretrain.optim.steps=20000 --quiet 2>"$WORK/error" &
  sleep "$wait"; kill -INT $!; wait $!
  verdict "interrupt after $wait s: exit 130" "[ $? = 130 ]"
  pipeline "$WORK/plain"
  verdict "interrupt after $wait s: next run" 'same "$WORK/plain"'
done

"$BIN/upcycle-inspect" verify --deep --artifacts "$WORK/disk/a" "${SMALL[@]:0:6}" >/dev/null 2>"$WORK/error"
verdict "after all that: verify" "[ $? = 0 ]"
echo "$survived of $tried survived"
[ "$survived" = "$tried" ]
