"""Models whose log_prob is exact."""
