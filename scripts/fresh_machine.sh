#!/bin/sh
# Tries every front door on a bare Debian 12, as README and docs/python.md say it: makes one with debootstrap in a
# folder, once, copies it and what is committed for each run, and runs the doors in the copy by chroot, one after the
# other. Needs root and debootstrap; apt's and pip's settings of this machine are used in there.
# Usage: scripts/fresh_machine.sh FOLDER [DOOR...]     doors: demo test fuzz bench python wheel (default: all)
# DEBIAN_MIRROR: where packages come from; FUZZ_SECONDS: for each fuzz target (30).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
machine=$1
shift
[ $# -gt 0 ] || set -- demo test fuzz bench python wheel
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

if [ ! -f "$machine/ready" ]; then
  rm -rf "$machine/base"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$machine/base" "$mirror"
  touch "$machine/ready"
fi
machine=$(cd "$machine" && pwd)

# What this machine needs to reach packages; nothing else of it.
pip_folders=$(cat /etc/pip.conf /root/.config/pip/pip.conf 2>/dev/null |
  grep -E '^(find-links|(extra-)?index-url)' | grep -o '/[^ ]*' |
  sed 's,^///*,/,; s,^\(/[^/]*/[^/]*\).*,\1,' | sort -u)
close() {
  for inner in worked bare; do
    for mount in $pip_folders /dev/shm /dev/pts /dev /proc; do umount -l "$machine/$inner$mount" 2>/dev/null || true; done
  done
}
trap close EXIT
# Two of them: what the doors install in one must not help the wheel in the other.
close
for inner in worked bare; do
  rm -rf --one-file-system "${machine:?}/$inner"
  cp -a "$machine/base" "$machine/$inner"
done
for inner in "$machine/worked" "$machine/bare"; do
  cp -L /etc/resolv.conf "$inner/etc/resolv.conf"
  for path in /etc/apt/apt.conf.d /etc/apt/sources.list.d /etc/apt/sources.list /etc/apt/auth.conf.d \
              /etc/pip.conf /root/.config/pip /etc/ssl/certs/ca-certificates.crt; do
    [ -e "$path" ] && mkdir -p "$inner$(dirname "$path")" && cp -rL "$path" "$inner$(dirname "$path")/"
  done
  [ -e /etc/apt/sources.list ] || : >"$inner/etc/apt/sources.list"
  mount -t proc proc "$inner/proc"
  mount --rbind /dev "$inner/dev" && mount --make-rslave "$inner/dev"
  for folder in $pip_folders; do
    [ -d "$folder" ] && mkdir -p "$inner$folder" && mount --bind "$folder" "$inner$folder"
  done
done

inside() { chroot "$machine/$1" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -ec "$2"; }

mkdir -p "$machine/worked/root/hxq"
git -C "$root" archive HEAD | tar -x -C "$machine/worked/root/hxq"
inside worked "apt-get update -qq && apt-get install -y -qq --no-install-recommends git make >/dev/null"

# The first block of commands and the first block of Python in docs/python.md.
page=$machine/worked/root/hxq/docs/python.md
sed -n '/^```$/,/^```$/{/^```$/!p};/^```python/q' "$page" >"$machine/worked/root/commands.sh"
sed -n '/^```python/,/^```$/{/^```/!p;/^```$/q}' "$page" >"$machine/worked/root/snippet.py"
python_door='
  apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
  . /root/commands.sh
  python /root/snippet.py'
wheel_door='
  python3 -m venv /root/venv && /root/venv/bin/pip install -q --no-index --no-deps /root/*.whl
  /root/venv/bin/helix-substrate compress /root/model /root/mine >/dev/null
  /root/venv/bin/helix-substrate verify /root/mine --source /root/model'

open_door() {
  case $1 in
    demo | test | bench) inside worked "cd /root/hxq && make $1" ;;
    fuzz) inside worked "cd /root/hxq && make fuzz SECONDS=${FUZZ_SECONDS:-30}" ;;
    python) inside worked "cd /root/hxq && $python_door" ;;
    wheel)
      inside worked "cd /root/hxq && make wheel" || return 1
      cp "$machine"/worked/root/hxq/build/dist/*.whl "$machine/bare/root/"
      cp -r "$root/models/wiki-mamba-7m" "$machine/bare/root/model"
      inside bare "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null &&
        $wheel_door"
      ;;
    *) echo "$1 is no door" >&2; exit 2 ;;
  esac
}

failed=""
for door in "$@"; do
  printf '\n== %s\n' "$door"
  begin=$(date +%s)
  open_door "$door" || failed="$failed $door"
  echo "($door: $(($(date +%s) - begin)) s)"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
echo "every door opens: $*"
