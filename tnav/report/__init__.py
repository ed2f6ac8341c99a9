"""Draws what ``run.json`` says as one offline HTML file. Computes nothing: formats, selects, draws."""
