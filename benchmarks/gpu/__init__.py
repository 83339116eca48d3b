"""All there is to know of one GPU, stage by stage, from a bare checkout: `python -m benchmarks.gpu`."""
