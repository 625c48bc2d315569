"""Networks on labelled data: what every image counts, and monitors that a training is handed."""
