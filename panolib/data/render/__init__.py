"""What draws the embedded scenes, city and nuclei; files, folders and labels of real data belong to `data`."""
