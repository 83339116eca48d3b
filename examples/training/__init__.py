"""The parts of `examples/train.py`: data, augmentation, the loop and what it writes."""
