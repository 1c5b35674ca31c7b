"""One part of the outside world each; none imports another, except safe_open, kernel and owners."""
