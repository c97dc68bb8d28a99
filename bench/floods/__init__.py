"""Those who come too often, and what is left for the others."""
