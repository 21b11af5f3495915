"""From a fault to a new client."""
