"""From distances to the order that counts: hubness normalisation, and searching under an expensive scorer."""
