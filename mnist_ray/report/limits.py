"""The most that a report shows of each kind. The page says what is left out, and which table has it."""

CURVES = 12
SETTINGS = 24
PAIRS = 60
EFFECTS = 24
# A matrix of 50 classes has EMNIST's 47; a page with two of them in counts and in shares has 2 MB.
CLASSES_IN_MATRIX = 50
CLASSES_IN_TABLE = 100
MISTAKES = 8
# What an image is read as.
VOTES = 4
