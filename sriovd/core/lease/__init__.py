"""Leases: who may use which VF. Pure: records, the life cycle, the choice of a VF, the CDI document."""
