"""How far the model can be trusted today: its answers against what became of the sessions, and its inputs' drift."""
