"""The real host: sysfs and uevents of a running Linux kernel, and helper processes for what can block."""
