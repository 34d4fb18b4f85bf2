"""Files read and replaced safely: size limits, hashes, locks, all or nothing."""
