"""The one HTML page: template, script, and the data in it."""
