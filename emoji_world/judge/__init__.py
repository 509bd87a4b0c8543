"""The judge of drawn pictures: it matches sprites, and shares no weights with the models."""

from emoji_world.judge.matching import Found, Judge, Limits, Seen

__all__ = ["Found", "Judge", "Limits", "Seen"]
