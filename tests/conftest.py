"""What holds for all tests: hypothesis judges results and not the time that a busy machine takes."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("sriovd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sriovd")
