"""The model compared, write by write, with the devices that QEMU emulates."""
