"""The report of a run: one HTML file with its numbers, its curves, and answers beside their pictures."""
