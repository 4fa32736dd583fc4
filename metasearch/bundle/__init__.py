"""Bundles: a trial's network as a folder that can be shipped, checked, run and served."""
