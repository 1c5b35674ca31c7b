"""One module for each part of the outside world. They share only safe_open, kernel and owners."""
