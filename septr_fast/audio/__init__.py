"""From recordings to spectrograms: files, front-ends, mel filters, statistics, windows.

It knows no model: of this package it imports the checks of `septr_fast.passes.inputs` and `septr_fast.reference`.
"""
