#!/bin/sh
# Tries every front door on a bare Debian 12, as the README says it: makes one with debootstrap in a folder, copies what is
# committed into it, and runs the doors in it by chroot. Needs root and debootstrap; apt's and pip's settings of this
# machine are used in there.
# Usage: scripts/fresh_machine.sh FOLDER [DOOR...]     doors: demo test fuzz bench python (default: all)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
machine=$1
shift
[ $# -gt 0 ] || set -- demo test fuzz bench python
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

if [ ! -f "$machine/ready" ]; then
  debootstrap --variant=minbase --include=ca-certificates bookworm "$machine" "$mirror"
  touch "$machine/ready"
fi
machine=$(cd "$machine" && pwd)

# What this machine needs to reach packages; nothing else of it.
cp -L /etc/resolv.conf "$machine/etc/resolv.conf"
for path in /etc/apt/apt.conf.d /etc/apt/sources.list.d /etc/apt/sources.list /etc/apt/auth.conf.d /etc/pip.conf \
            /etc/ssl/certs/ca-certificates.crt /root/.config/pip; do
  [ -e "$path" ] && mkdir -p "$machine$(dirname "$path")" && cp -rL "$path" "$machine$(dirname "$path")/"
done

close() { for mount in dev/shm dev proc; do umount "$machine/$mount" 2>/dev/null || true; done; }
trap close EXIT
mkdir -p "$machine/dev/shm"
mount -t proc proc "$machine/proc"
mount --rbind /dev "$machine/dev" && mount --make-rslave "$machine/dev"

inside() { chroot "$machine" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -ec "$1"; }

rm -rf "$machine/root/hxq"
mkdir -p "$machine/root/hxq"
git -C "$root" archive HEAD | tar -x -C "$machine/root/hxq"
inside "apt-get update -qq && apt-get install -y -qq --no-install-recommends git make >/dev/null"

# The install and the first snippet of docs/python.md, with a folder in the place of DIR.
python_door='
  apt-get install -y -qq --no-install-recommends $(cat scripts/debian-packages.txt) python3-venv >/dev/null
  python3 -m venv /root/venv && cd python && /root/venv/bin/pip install -q ".[hf]" && cd ..
  /root/venv/bin/python -m helix_substrate compress models/wiki-mamba-7m /root/mine
  sed -n "/^```python/,/^```/{/^```/!p;/^```$/q}" docs/python.md | sed "s,DIR,\"/root/mine\",g" >/root/snippet.py
  echo "print(tokenizer.decode(out[0]))" >>/root/snippet.py
  /root/venv/bin/python /root/snippet.py'

failed=""
for door in "$@"; do
  printf '\n== %s\n' "$door"
  case $door in
    demo | test | bench) command="make $door" ;;
    fuzz) command="make fuzz SECONDS=${FUZZ_SECONDS:-30}" ;;
    python) command=$python_door ;;
    *) echo "$door is no door" >&2; exit 2 ;;
  esac
  inside "cd /root/hxq && $command" || failed="$failed $door"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
echo "every door opens: $*"
