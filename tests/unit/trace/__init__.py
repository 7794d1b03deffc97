"""Recovery without a host."""
