"""The online service: HTTP in front, Redis behind, the model's step in between."""
