"""Stored results as one page with tables and charts: `python -m septr_fast report`."""
