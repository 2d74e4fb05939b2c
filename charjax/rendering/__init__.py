"""Text colored by numbers, in a terminal and as an HTML page."""
