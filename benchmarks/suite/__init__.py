"""The suite behind `benchmarks/test_*.py`: cases, models, parity, the runner, and pages of stored results."""
