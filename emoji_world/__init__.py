"""The embedded world: emoji scenes with known truth, and the recipes of what weights/ ships."""
