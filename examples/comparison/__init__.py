"""Models compared by what they learn from the same clips and what that costs."""
