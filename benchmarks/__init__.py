"""Scripts that measure ratios against a named baseline, both in one run; results per machine."""
