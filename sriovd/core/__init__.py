"""The rules of sriovd. Knows the host only as backend.base.Backend, and never D-Bus."""
