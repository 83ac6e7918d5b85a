"""What every long job shares: atomic writes, locks, manifests, resuming and progress."""
