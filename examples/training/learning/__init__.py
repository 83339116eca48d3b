"""One model in training: where it starts from, what it is asked for, its optimizer, its average and one step of it."""
