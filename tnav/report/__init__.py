"""Draws what ``run.json`` says as one offline HTML file: formats and selects, computes nothing."""
