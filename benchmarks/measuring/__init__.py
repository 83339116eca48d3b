"""What is measured and how: clocks, memory, counted work, rooflines, CUDA graphs."""
