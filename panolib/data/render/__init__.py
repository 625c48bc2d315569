"""What draws the embedded scenes, city and nuclei. Files and labels of real data belong to `data`."""
