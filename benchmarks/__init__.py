"""Whole-process benchmarks of stockpot against the time to copy the same bytes."""
