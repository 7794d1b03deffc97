#!/bin/sh
# Runs in the guest: make-tenant.sh DIRECTORY makes initramfs there, a tenant's whole userland: busybox, igbvf and
# DIRECTORY/init. The kernel is the guest's own.
set -eu
tree=$1/tree
rm -rf "$tree"
mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/sys"
cp /bin/busybox "$tree/bin/"
install -m 755 "$1/init" "$tree/init"
mknod -m 600 "$tree/dev/console" c 5 1 # where the kernel opens init's three descriptors
modprobe --show-depends igbvf | while read -r insmod path; do
    [ "$insmod" = insmod ] || continue # builtin
    name=$(basename "${path%.xz}")
    case $path in *.xz) busybox unxz -c "$path" ;; *) cat "$path" ;; esac > "$tree/$name"
    echo "$name" >> "$tree/modules"
done
(cd "$tree" && find . | cpio --quiet -o -H newc > "$1/initramfs")
