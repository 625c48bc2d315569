"""From trained networks and an image to panoptic maps and the files that official tools read. No scores."""
