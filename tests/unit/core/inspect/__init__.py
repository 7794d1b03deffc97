"""Inspections of VFs, each alone."""
