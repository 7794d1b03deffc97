"""Desired state: plans, their execution, policies in force, the watch over drift."""
