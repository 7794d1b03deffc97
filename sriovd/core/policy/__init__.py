"""Desired state: policy files, the plan that leads to them, its execution and the watch over drift."""
