"""Errors of adapters: noticing, freezing, locking out, recovering and permitting again."""
