"""Limits on what a report shows. The page says what is left out, and which table has it."""

CURVES = 12
SETTINGS = 24
PAIRS = 60
EFFECTS = 24
# In one chart.
LINES = 6
# So that all 47 classes of EMNIST fit.
CLASSES_IN_MATRIX = 50
CLASSES_IN_TABLE = 100
MISTAKES = 8
# Pixels on the page.
PICTURE_SIDE = 84
# Predicted classes that are listed for an image.
VOTES = 4
