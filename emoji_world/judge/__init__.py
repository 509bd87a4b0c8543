"""The judge of drawn pictures: it matches sprites, and shares no weights with the models."""

from emoji_world.judge.matching import Judge, Limits, ObjectMatch, PictureContent

__all__ = ["Judge", "Limits", "ObjectMatch", "PictureContent"]
