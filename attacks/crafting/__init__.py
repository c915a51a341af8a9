"""What crafting attacks share."""
