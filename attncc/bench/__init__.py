"""Times an attention beside the installed peers that can express it."""
