"""Whether the answers are good: calibration of settings on queries."""
