"""The charts of a report, one file for each kind; they need matplotlib."""
