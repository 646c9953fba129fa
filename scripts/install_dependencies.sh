#!/bin/sh
# Installs the Debian packages that the build needs. Does nothing when all are there; asks nothing when run as root;
# otherwise prints the one line to run.
# Usage: scripts/install_dependencies.sh [MORE_PACKAGES...]
set -eu

missing=""
for package in $(cat "$(dirname "$0")/debian-packages.txt") "$@"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" != 0 ]; then
  echo "Packages are missing. Run this once, then repeat your command:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$missing" >&2
  exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends $missing >/dev/null
