"""Entry points for `ray job submit -- python -m ray_jobs.NAME RECIPE`, and the recipes they run."""
