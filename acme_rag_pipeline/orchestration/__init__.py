"""The Dagster layer: assets, checks, jobs, sensor, schedules."""

import gc
import sys

import dagster  # noqa: F401

# What Dagster has imported and built by now stays until the process ends: searching it for garbage, and a last time at exit,
# was a quarter of a small refresh. DuckDB's binding complains of leaks when its own types are never searched.
gc.set_threshold(50_000, 20, 20)
if "duckdb" not in sys.modules:
    gc.freeze()
