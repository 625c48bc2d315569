"""From files to samples and batches: readers, data sets, mixing, views, augmentation. No networks."""
