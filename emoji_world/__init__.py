"""The world that weights/ was trained in: emoji scenes with known truth, and who judges drawings.

``scenes``, ``captions``, ``questions`` and ``render`` are the world, ``art`` its artwork, ``judge``
what looks at drawn pictures without any model, ``train`` the recipes. It stands on `bridge`; the
library never imports it, and the wheel does not have it.
"""
