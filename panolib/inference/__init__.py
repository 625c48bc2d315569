"""From a trained network and an image to panoptic maps and the files that official tools read; no labels, no scores."""
