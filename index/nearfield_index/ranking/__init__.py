"""From distances to the order that counts: searching under an expensive scorer with few calls of it."""
