"""Tracing without a host."""
