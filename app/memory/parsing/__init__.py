"""From an uploaded file to blocks of text with their place. Only a limited child ever opens the file."""
