"""Independent reference of RWT/2 and its test vectors; imports nothing of the packages under test."""
