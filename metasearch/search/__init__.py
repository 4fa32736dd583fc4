"""Searches: the space of configurations, the studies that are kept, and the trials that Ray Tune runs."""
