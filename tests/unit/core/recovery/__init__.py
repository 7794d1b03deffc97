"""Errors without a host: decoding, forensic bundles, their report."""
