"""Results as text for people and as JSON for programs; nothing is computed here."""
