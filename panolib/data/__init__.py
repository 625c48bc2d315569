"""From files to samples and batches: readers, data sets, mixing, views, augmentation; nothing here knows a network."""
