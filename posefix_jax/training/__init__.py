"""Training: person records in, a refiner out."""
