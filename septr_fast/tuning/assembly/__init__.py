"""Machine code of compiled kernels: assemblers, its text, and what is read in it; imports nothing of the package."""
