"""From distances to a ranking: hubness normalisation as one bias an item."""
