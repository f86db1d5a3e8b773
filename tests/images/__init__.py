"""Files of images, labels and masks."""
