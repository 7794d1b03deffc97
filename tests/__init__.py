"""Tests. unit: one part at a time; simulated: the whole daemon, no hardware; lab: on a real kernel."""
