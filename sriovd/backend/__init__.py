"""The seam: base.py says what a host can do; linux and simulated do it; model is the simulated hardware."""
