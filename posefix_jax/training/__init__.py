"""People in shards, a refiner out."""
