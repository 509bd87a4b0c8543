"""What tests share: tiny models, folders and files of every layout, and helpers."""
