"""Training recipes of what weights/ ships: ``python -m bridge.emoji.train --help``."""
