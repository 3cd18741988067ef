"""The endpoints, one thin call each."""
