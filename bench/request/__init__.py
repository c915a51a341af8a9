"""What a user asks for: protocol files, sweep files, lists of trials."""
