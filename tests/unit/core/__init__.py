"""The rules, without a host and without D-Bus."""
