"""The input of the benchmarks: words spoken offline, or recordings of the user's."""
