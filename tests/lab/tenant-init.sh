#!/bin/busybox sh
# The first and only program of a tenant's VM. Prints one line per event to the serial console, which the test
# reads: `mac ADDRESS`, `up`, `ping N ok`, `ping N lost`, `failed REASON`; and does what is written to it: `stop`,
# `address MAC`, which its interface shall have from now on; it prints `address kept` or `address changed`.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
    case $word in tenant.*=*) eval "${word#tenant.}" ;; esac # address=, peer=
done

end() { reboot -f; } # without ACPI there is no power off; QEMU has -no-reboot
fail() { echo "failed $*"; end; }

for module in $(cat /modules); do insmod "/$module" || fail "insmod $module"; done
interface=
for second in 1 2 3 4 5 6 7 8 9 10; do
    for link in /sys/class/net/*/device; do [ -e "$link" ] && interface=$(basename "${link%/device}"); done
    [ -n "$interface" ] && break
    sleep 1
done
[ -n "$interface" ] || fail "no interface: $(dmesg | grep igbvf | tail -n 1)"
echo "mac $(cat "/sys/class/net/$interface/address")"
ip link set "$interface" up && ip addr add "$address/24" dev "$interface" || fail "ip addr add $address"
echo up

# A reply may take long on a busy host: only one that never comes is lost.
ping_for_ever() {
    number=0
    while :; do
        if ping -c 1 -W 5 "$peer" > /dev/null 2>&1; then result=ok; else result=lost; fi
        echo "ping $number $result"
        number=$((number + 1))
        sleep 1
    done
}
ping_for_ever &
while read -r command argument; do
    case $command in
        stop) end ;;
        address)
            if ip link set "$interface" address "$argument"; then echo address changed; else echo address kept; fi ;;
    esac
done
fail "the console has ended"
