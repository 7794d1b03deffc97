"""Unit tests of the userspace adapter model."""
