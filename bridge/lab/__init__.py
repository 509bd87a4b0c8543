"""The phrasing lab: how what is said, and who reads it, changes what is understood and drawn."""
