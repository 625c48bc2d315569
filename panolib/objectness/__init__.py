"""Whether a clustered mask is a real object (thesis 9.1): features, negatives, classifiers. No scores."""
