#!/bin/sh
# Last step of a guest image, run by mmdebstrap on the host with the new root as $1. systemd, dbus-daemon, udev and polkit stay as Debian ships them.
set -eu
root=$1

systemctl --root="$root" --quiet enable sriovd-lab-agent.service

# Nothing here has a network, a clock to set, a disk to trim or a second kernel, and each costs boot time under emulation.
systemctl --root="$root" --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-timesyncd.service kexec-load.service kexec.service ldconfig.service systemd-journal-catalog-update.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount nvmf-autoconnect.service systemd-pstore.service \
    podman.service podman.socket podman-auto-update.timer podman-restart.service podman-clean-transient.service \
    netavark-dhcp-proxy.service netavark-dhcp-proxy.socket netavark-firewalld-reload.service

: > "$root/etc/fstab"
: > "$root/etc/machine-id"
chroot "$root" passwd --quiet --delete root
mkdir -p "$root/var/log/journal"
rm -rf "$root/var/cache/apt" "$root/var/lib/apt/lists"
