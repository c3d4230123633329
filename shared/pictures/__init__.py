"""Pictures: decoded defensively, damage repaired as browsers do."""
