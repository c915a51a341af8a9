"""Numbers: `published/` holds the papers' tables, other folders the records and leaderboards of this benchmark.

What runs write by default goes to `results/runs`, which git ignores.
"""
