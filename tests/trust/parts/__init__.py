"""The parts of the corpus, one file each; what they work with lies in the rooms beside."""
