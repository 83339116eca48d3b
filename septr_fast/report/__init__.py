"""Stored results as pages: tables, charts and sentences, every number of them from files.

It imports nothing else of this package.
"""
