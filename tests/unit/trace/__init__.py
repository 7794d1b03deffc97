"""Traces and their readers, without a daemon."""
