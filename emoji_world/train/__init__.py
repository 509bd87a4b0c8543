"""Training recipes of what weights/ ships: ``python -m emoji_world.train --help``."""
