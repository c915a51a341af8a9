"""What keeps artefacts and records on the disk."""
