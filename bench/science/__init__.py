"""Everything that can change a number: a cell's fingerprint hashes the whole folder."""
