"""Files of pictures, labels and masks."""
