"""Benchmarks: each prints one table, with machine, commit and quality beside speed."""
