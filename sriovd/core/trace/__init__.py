"""Tracing VFs: what happens to each is recorded in one place, for its owner."""
