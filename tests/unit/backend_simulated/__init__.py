"""Tests of the simulated host; expectations are what a stock 6.12 kernel was seen to do."""
