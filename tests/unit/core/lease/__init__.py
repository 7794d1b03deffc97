"""Leases without a host: records, the life cycle, the choice of a VF, the CDI document."""
