"""The Gradio app: `python demos/app.py`."""
